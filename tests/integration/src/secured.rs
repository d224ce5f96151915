//! Daemons that speak TLS, and those who ask them.

use std::fs;
use std::path::PathBuf;

use certificates::{Authority, Issued, Request};
use cli::client::Client;
use tls::Files;

use crate::House;

/// What a configuration says of its certificate. Paths start at the folder of the node.
const CONFIGURATION: &str = "[tls]\ncertificate = \"node.crt\"\nkey = \"node.key\"\nca = \"ca.crt\"\n";

/// Daemons with certificates of one authority.
pub struct Secured {
    /// The daemons. They are asked as an administrator.
    pub house: House,
    /// Who issues certificates.
    pub authority: Authority,
}

impl Secured {
    /// Daemons with these names, configured and not started; `extra` comes first in their configurations.
    pub fn prepare(names: &[&str], extra: &str) -> anyhow::Result<Self> {
        let house = House::prepare_with(names, &format!("{extra}\n{CONFIGURATION}"))?;
        let mut secured = Self { house, authority: Authority::new("ca of tests") };
        let admin = secured.person("admin", &uri("role/admin"))?;
        for (index, name) in names.iter().enumerate() {
            secured.replace(index, &secured.authority.issue(&node(name)))?;
            let folder = secured.house.cluster.nodes()[index].folder().to_owned();
            fs::write(folder.join("ca.crt"), secured.authority.pem())?;
            secured.house.cluster.node(index).ask_as(admin.clone());
        }
        Ok(secured)
    }

    /// Puts another certificate into a daemon's files.
    pub fn replace(&self, index: usize, issued: &Issued) -> anyhow::Result<()> {
        Ok(issued.write(self.house.cluster.nodes()[index].folder(), "node")?)
    }

    /// The files of somebody with this URI name.
    pub fn person(&self, name: &str, uri: &str) -> anyhow::Result<Files> {
        let request = Request { server: false, addresses: Vec::new(), ..Request::new(uri) };
        self.files(name, &self.authority.issue(&request))
    }

    /// The files of somebody with this certificate, who trusts the authority.
    pub fn files(&self, name: &str, issued: &Issued) -> anyhow::Result<Files> {
        let folder = self.house.folder();
        issued.write(&folder, name)?;
        let ca = folder.join("ca.crt");
        fs::write(&ca, self.authority.pem())?;
        let file = |kind: &str| -> PathBuf { folder.join(format!("{name}.{kind}")) };
        Ok(Files { certificate: file("crt"), key: file("key"), ca, crl: None })
    }

    /// A connection of somebody to a daemon.
    pub async fn client(&self, index: usize, files: &Files) -> anyhow::Result<Client> {
        Client::connect_as(&self.house.cluster.nodes()[index].server(), Some(files)).await
    }
}

/// A URI name of the tests' cluster.
pub fn uri(rest: &str) -> String {
    format!("spiffe://tests.example/ashlar/{rest}")
}

/// What a node asks its authority for.
pub fn node(name: &str) -> Request {
    Request::new(&uri(&format!("node/{name}")))
}
