//! Compiles the contract without protoc: protox parses it, tonic generates from the descriptors.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 10] = [
    "ashlar/v1/node.proto",
    "ashlar/v1/store.proto",
    "ashlar/v1/lvol.proto",
    "ashlar/v1/replica.proto",
    "ashlar/v1/engine.proto",
    "ashlar/v1/volume.proto",
    "ashlar/v1/operation.proto",
    "ashlar/v1/orphan.proto",
    "ashlar/v1/backup.proto",
    "ashlar/v1/errors.proto",
];

/// Fields that hold a state, and how they are serialized.
const STATES: [(&str, &str); 20] = [
    (".ashlar.v1.Event.subject", "event_subject"),
    (".ashlar.v1.LastRun.end", "run_end"),
    (".ashlar.v1.Store.state", "store_state"),
    (".ashlar.v1.Lvol.state", "lvol_state"),
    (".ashlar.v1.Replica.state", "replica_state"),
    (".ashlar.v1.Member.state", "member_state"),
    (".ashlar.v1.Engine.state", "engine_state"),
    (".ashlar.v1.Volume.state", "volume_state"),
    (".ashlar.v1.VolumeChange.kind", "change_kind"),
    (".ashlar.v1.OperationChange.kind", "change_kind"),
    (".ashlar.v1.NodeChange.kind", "change_kind"),
    (".ashlar.v1.StoreChange.kind", "change_kind"),
    (".ashlar.v1.LvolChange.kind", "change_kind"),
    (".ashlar.v1.ReplicaChange.kind", "change_kind"),
    (".ashlar.v1.Operation.kind", "operation_kind"),
    (".ashlar.v1.Operation.state", "operation_state"),
    (".ashlar.v1.Peer.state", "peer_state"),
    (".ashlar.v1.Orphan.kind", "orphan_kind"),
    (".ashlar.v1.Orphan.state", "orphan_state"),
    (".ashlar.v1.Standby.state", "standby_state"),
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let output = PathBuf::from(env::var("OUT_DIR")?);
    // Served by reflection, so that grpcurl and the like work without these files.
    let encoded = protox::prost::Message::encode_to_vec(&descriptors);
    fs::write(output.join("descriptors.bin"), encoded)?;
    // `ashlar -o json` prints messages as they are, with states as words.
    let mut generator = tonic_prost_build::configure().message_attribute(".ashlar.v1", "#[derive(serde::Serialize)]");
    // Labels print in order.
    generator = generator.btree_map(".ashlar.v1");
    for (field, serialize) in STATES {
        let attribute = format!("#[serde(serialize_with = \"crate::states::{serialize}\")]");
        generator = generator.field_attribute(field, attribute);
    }
    generator = generator.field_attribute(".ashlar.v1.ChapCredentials.secret", "#[serde(skip)]");
    // The messages of streams: what they are one of.
    generator = generator.enum_attribute(".ashlar.v1.ExportLvolResponse.part", "#[derive(serde::Serialize)]");
    generator = generator.enum_attribute(".ashlar.v1.ImportLvolRequest.part", "#[derive(serde::Serialize)]");
    // What prints of it is in src/secrets.rs.
    generator = generator.skip_debug([".ashlar.v1.ChapCredentials"]);
    generator.compile_fds(descriptors)?;
    Ok(())
}
