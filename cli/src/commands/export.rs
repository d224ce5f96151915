//! `ashlar volume export`, `unexport` and `attach-command`: who may attach a volume, and what to type on a host.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use proto::v1::{
    AllowedHosts, ChapCredentials, ChapSettings, ChapState, Engine, ExportVolumeRequest, Frontend, GetVolumeRequest,
    HostList, IscsiExport, NvmfExport, UnexportVolumeRequest, Volume,
};
use serde::Serialize;

use crate::arguments::{ExportVolume, FrontendName};
use crate::client::{Client, answer};
use crate::output::Output;

/// Bytes of a secret file that are read: no secret has as many.
const SECRET_FILE_MAX: u64 = 1024;
/// Stands for the user's own secret in a line to type: a file on the host that has it.
const INITIATOR_SECRET: &str = "\"$(cat initiator-secret)\"";
const TARGET_SECRET: &str = "\"$(cat target-secret)\"";

pub(super) async fn export(client: &Client, options: &ExportVolume) -> anyhow::Result<Volume> {
    let request = ExportVolumeRequest {
        volume: options.volume.clone(),
        frontend: frontend(options.frontend).into(),
        allowed: allowed(options),
        chap: chap(options)?,
    };
    answer(client.volumes().export(request).await)
}

pub(super) async fn unexport(client: &Client, volume: &str, name: Option<FrontendName>) -> anyhow::Result<Volume> {
    let frontend = name.map_or(Frontend::Unspecified, frontend);
    let request = UnexportVolumeRequest { volume: volume.to_owned(), frontend: frontend.into() };
    answer(client.volumes().unexport(request).await)
}

/// Prints what to type on a host, for one frontend or all.
pub(super) async fn attach_command(
    client: &Client,
    volume: &str,
    only: Option<FrontendName>,
    output: Output,
) -> anyhow::Result<()> {
    let found = answer(client.volumes().get(GetVolumeRequest { volume: volume.to_owned() }).await)?;
    let engine = found.engine.with_context(|| format!("volume {volume} is not exported yet"))?;
    let ways: Vec<_> = ways(&engine).into_iter().filter(|way| only.is_none_or(|only| only == way.frontend)).collect();
    ensure!(!ways.is_empty(), "volume {volume} is not exported so; `ashlar volume export` does that");
    output.print(&ways, |ways, _| ways.iter().flat_map(|way| &way.commands).map(|line| format!("{line}\n")).collect())
}

fn frontend(name: FrontendName) -> Frontend {
    match name {
        FrontendName::Nvmf => Frontend::Nvmf,
        FrontendName::Iscsi => Frontend::Iscsi,
    }
}

fn allowed(options: &ExportVolume) -> Option<AllowedHosts> {
    let given = options.allow_any || !options.allow.is_empty();
    given.then(|| AllowedHosts { any: options.allow_any, names: options.allow.clone() })
}

fn chap(options: &ExportVolume) -> anyhow::Result<Option<ChapSettings>> {
    let initiator = credentials(options.chap_user.as_deref(), options.chap_secret_file.as_deref())?;
    let target = credentials(options.mutual_user.as_deref(), options.mutual_secret_file.as_deref())?;
    let algorithms = options.chap_algorithms.clone();
    let given = options.no_chap || initiator.is_some();
    Ok(given.then_some(ChapSettings { initiator, target, algorithms }))
}

fn credentials(name: Option<&str>, secret: Option<&Path>) -> anyhow::Result<Option<ChapCredentials>> {
    let (Some(name), Some(secret)) = (name, secret) else { return Ok(None) };
    let secret = read_secret(secret).with_context(|| format!("the secret in {}", secret.display()))?;
    Ok(Some(ChapCredentials { name: name.to_owned(), secret }))
}

/// The first line of a file that nobody else may read, or of standard input for `-`. Secrets are on no command line: every user of a
/// machine sees those.
fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = match path == Path::new("-") {
        true => {
            let mut text = String::new();
            io::stdin().lock().take(SECRET_FILE_MAX).read_to_string(&mut text)?;
            text
        }
        // What the error of a conversion says would quote the secret.
        false => String::from_utf8(tls::private::read(path, SECRET_FILE_MAX)?).ok().context("it is not text")?,
    };
    let mut lines = text.lines();
    let secret = lines.next().unwrap_or_default().to_owned();
    if lines.next().is_some() {
        bail!("it has more than one line");
    }
    Ok(secret)
}

/// How to attach over one frontend.
#[derive(Debug, Serialize)]
pub(super) struct Way {
    frontend: FrontendName,
    /// Lines for a shell on the host.
    commands: Vec<String>,
}

/// How to attach over each frontend that the volume is exported over.
pub(super) fn ways(engine: &Engine) -> Vec<Way> {
    let nvmf = engine.nvmf.as_ref().map(|nvmf| Way { frontend: FrontendName::Nvmf, commands: nvme(nvmf) });
    let iscsi = engine.iscsi.as_ref().map(|iscsi| Way { frontend: FrontendName::Iscsi, commands: iscsiadm(iscsi) });
    nvmf.into_iter().chain(iscsi).collect()
}

/// The frontends of a volume and how to attach there, for people.
pub(super) fn push_frontends(text: &mut String, engine: &Engine) {
    let mut push = |arguments: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = text.write_fmt(arguments);
    };
    if let Some(nvmf) = &engine.nvmf {
        push(format_args!("\nnqn      {}\n", nvmf.nqn));
        push(format_args!("{}", hosts(nvmf.hosts.as_ref())));
    }
    if let Some(iscsi) = &engine.iscsi {
        push(format_args!("\niqn      {}\nportals  {}\n", iscsi.iqn, iscsi.portals.join(" ")));
        push(format_args!(
            "{}{}",
            hosts(iscsi.initiators.as_ref()),
            iscsi.chap.as_ref().map(describe).unwrap_or_default()
        ));
    }
    if !engine.frontends_reason.is_empty() {
        push(format_args!("\nNot as wanted yet, and tried again: {}\n", engine.frontends_reason));
    }
    let ways = ways(engine);
    if ways.is_empty() {
        return push(format_args!("\nNo host can attach it; `ashlar volume export` shows it to hosts.\n"));
    }
    push(format_args!("\nAttach it to a Linux host:\n"));
    for line in ways.iter().flat_map(|way| &way.commands) {
        push(format_args!("  {line}\n"));
    }
}

fn hosts(list: Option<&HostList>) -> String {
    list.map(|list| format!("hosts    {}\n", list.names.join(" "))).unwrap_or_default()
}

fn describe(chap: &ChapState) -> String {
    let mutual = if chap.target.is_empty() { String::new() } else { format!(", mutual: {}", chap.target) };
    format!("chap     {}{mutual} ({})\n", chap.initiator, chap.algorithms.join(" "))
}

fn nvme(export: &NvmfExport) -> Vec<String> {
    let line = |verb: &str, address: &str, rest: &str| {
        let (host, port) = split(address);
        format!("nvme {verb} -t tcp -a {host} -s {port}{rest}")
    };
    let discover = export.discovery_addresses.iter().map(|address| line("discover", address, ""));
    let connect = export.addresses.iter().map(|address| line("connect", address, &format!(" -n {}", export.nqn)));
    discover.chain(connect).collect()
}

fn iscsiadm(export: &IscsiExport) -> Vec<String> {
    let mut lines = Vec::new();
    for portal in &export.portals {
        let node = format!("iscsiadm -m node -T {} -p {portal}", export.iqn);
        lines.push(format!("{node} -o new"));
        for (setting, value) in export.chap.as_ref().map(settings).unwrap_or_default() {
            lines.push(format!("{node} -o update -n node.session.auth.{setting} -v {value}"));
        }
        lines.push(format!("{node} --login"));
    }
    lines
}

fn settings(chap: &ChapState) -> Vec<(&'static str, String)> {
    let known = |word: &String| match word.as_str() {
        "sha3-256" => "SHA3-256".to_owned(),
        word => word.to_uppercase(),
    };
    let algorithms: Vec<_> = chap.algorithms.iter().map(known).collect();
    let mut settings = vec![
        ("authmethod", "CHAP".to_owned()),
        ("chap_algs", algorithms.join(",")),
        ("username", chap.initiator.clone()),
        ("password", INITIATOR_SECRET.to_owned()),
    ];
    if !chap.target.is_empty() {
        settings.push(("username_in", chap.target.clone()));
        settings.push(("password_in", TARGET_SECRET.to_owned()));
    }
    settings
}

/// `address:port`, with the brackets of IPv6 taken off as nvme-cli wants it.
fn split(address: &str) -> (&str, &str) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn engine(chap: Option<ChapState>) -> Engine {
        let iscsi = IscsiExport {
            iqn: "iqn.2026-11.example:v".into(),
            portals: vec!["127.0.0.1:3260".into(), "[::1]:3260".into()],
            initiators: Some(HostList { names: vec!["iqn.2026-01.org:h".into()] }),
            chap,
            ..IscsiExport::default()
        };
        Engine { iscsi: Some(iscsi), ..Engine::default() }
    }

    #[test]
    fn each_portal_has_its_lines() {
        let mut text = String::new();
        push_frontends(&mut text, &engine(None));
        let expected = "
iqn      iqn.2026-11.example:v
portals  127.0.0.1:3260 [::1]:3260
hosts    iqn.2026-01.org:h

Attach it to a Linux host:
  iscsiadm -m node -T iqn.2026-11.example:v -p 127.0.0.1:3260 -o new
  iscsiadm -m node -T iqn.2026-11.example:v -p 127.0.0.1:3260 --login
  iscsiadm -m node -T iqn.2026-11.example:v -p [::1]:3260 -o new
  iscsiadm -m node -T iqn.2026-11.example:v -p [::1]:3260 --login
";
        assert_eq!(text, expected);
    }

    #[test]
    fn credentials_are_set_before_the_login() {
        let chap = ChapState {
            initiator: "host".into(),
            target: "volumes".into(),
            algorithms: vec!["sha3-256".into(), "md5".into()],
        };
        let ways = ways(&engine(Some(chap)));
        let node = "iscsiadm -m node -T iqn.2026-11.example:v -p 127.0.0.1:3260";
        let expected = [
            format!("{node} -o new"),
            format!("{node} -o update -n node.session.auth.authmethod -v CHAP"),
            format!("{node} -o update -n node.session.auth.chap_algs -v SHA3-256,MD5"),
            format!("{node} -o update -n node.session.auth.username -v host"),
            format!("{node} -o update -n node.session.auth.password -v \"$(cat initiator-secret)\""),
            format!("{node} -o update -n node.session.auth.username_in -v volumes"),
            format!("{node} -o update -n node.session.auth.password_in -v \"$(cat target-secret)\""),
            format!("{node} --login"),
        ];
        assert_eq!(ways[0].commands[..8], expected);
    }

    #[test]
    fn a_secret_is_one_line_of_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "a secret of hosts\n").expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        let refused = read_secret(&path).expect_err("others may read it");
        assert!(refused.to_string().contains("mode 0644"), "{refused}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
        assert_eq!(read_secret(&path).expect("readable"), "a secret of hosts");
        fs::write(&path, "one\ntwo\n").expect("written");
        assert!(read_secret(&path).is_err());
        assert!(read_secret(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn a_volume_that_nobody_can_attach_says_so() {
        let mut text = String::new();
        push_frontends(&mut text, &Engine::default());
        assert!(text.contains("No host can attach it"), "{text}");
    }
}
