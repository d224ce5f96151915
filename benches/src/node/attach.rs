//! One more volume is shown to hosts, and a host attaches it.

use std::time::Instant;

use cli::client::answer;
use nvmf_initiator::{Controller, Options};
use proto::v1::{ExportVolumeRequest, Frontend, UnexportVolumeRequest};
use reactor::{Config, Reactor};

use super::Plan;
use super::list::milliseconds;
use super::stage::{Stage, name, nqn_of};
use crate::report::{Row, Target, median};

pub(super) async fn measure(stage: &Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let host = Reactor::start(Config { name: "host".to_owned(), ..Config::default() })?;
    let (client, address, frontend) = (stage.client().await?, stage.hosts_address(), Frontend::Nvmf.into());
    let (mut shown, mut attached) = (Vec::new(), Vec::new());
    for number in 0..plan.often {
        let volume = name(number % stage.volumes);
        let unexport = UnexportVolumeRequest { volume: volume.clone(), frontend };
        answer(client.volumes().unexport(unexport).await)?;
        let begun = Instant::now();
        let export = ExportVolumeRequest { volume, frontend, ..ExportVolumeRequest::default() };
        let nqn = nqn_of(&answer(client.volumes().export(export).await)?)?;
        shown.push(milliseconds(begun));
        let connecting = host.handle().call(move || async move {
            let controller = Controller::connect(address, &nqn, Options::default()).await?;
            let connected = Instant::now();
            controller.disconnect().await;
            anyhow::Ok(connected)
        });
        let connected = connecting.await??;
        attached.push((connected - begun).as_secs_f64() * 1000.0);
    }
    let note = format!("{:.1} ms of it until the export is answered", median(&shown));
    let case = "one more volume shown over NVMe/TCP and connected to";
    Ok(vec![Row::alone(case, "ms", median(&attached)).target(Target::AtMost(50.0)).note(note)])
}
