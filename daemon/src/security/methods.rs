//! What each method of the API does, for who may call it.

/// What a method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Shows something that is no secret.
    Read,
    /// Makes or deletes a replica of this node, as a peer asks for it.
    Replica,
    /// Everything else.
    Change,
}

impl Class {
    /// Who may call it, for people.
    pub(super) const fn needs(self) -> &'static str {
        match self {
            Self::Read => "an admin, read-only or node identity",
            Self::Replica => "an admin or node identity",
            Self::Change => "an admin identity",
        }
    }
}

/// Services that only show something, with all their methods.
const SHOWING: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// All methods of `ashlar.v1`. What an export hands out is what a volume holds.
const METHODS: &[(&str, Class, &[&str])] = &[
    ("NodeService", Class::Read, &["Info", "Watch", "Events", "GetLog"]),
    ("NodeService", Class::Change, &["SetLog"]),
    ("StoreService", Class::Read, &["List", "Get", "Watch"]),
    ("StoreService", Class::Change, &["Create", "Delete", "Grow", "SetLimits", "StartScrub", "StopScrub"]),
    ("LvolService", Class::Read, &["List", "Get", "Watch"]),
    (
        "LvolService",
        Class::Change,
        &[
            "Create",
            "Delete",
            "CancelDelete",
            "Snapshot",
            "CreateClone",
            "Revert",
            "Grow",
            "Rename",
            "Export",
            "Import",
        ],
    ),
    ("ReplicaService", Class::Read, &["List", "Watch"]),
    ("ReplicaService", Class::Replica, &["Create", "Delete"]),
    ("EngineService", Class::Read, &["List", "Get"]),
    ("EngineService", Class::Change, &["Create", "Delete", "Snapshot"]),
    ("OperationService", Class::Read, &["List", "Get", "Watch"]),
    ("OperationService", Class::Change, &["Cancel"]),
    ("BackupTargetService", Class::Read, &["List", "Get", "Watch"]),
    ("BackupTargetService", Class::Change, &["Create", "Delete", "Check"]),
    ("BackupService", Class::Read, &["List", "ListVolumes", "Get", "Watch"]),
    ("BackupService", Class::Change, &["Create", "Delete", "Verify", "Restore"]),
    ("StandbyService", Class::Read, &["List", "Get", "Watch"]),
    ("StandbyService", Class::Change, &["Create", "Activate", "Delete"]),
    ("BackupScheduleService", Class::Read, &["List", "Get", "Watch"]),
    ("BackupScheduleService", Class::Change, &["Create", "Delete"]),
    ("OrphanService", Class::Read, &["List", "ListClaims", "Watch"]),
    ("OrphanService", Class::Change, &["Adopt", "Delete"]),
    ("VolumeService", Class::Read, &["List", "Get", "ListSnapshots", "Watch", "WatchSnapshots"]),
    (
        "VolumeService",
        Class::Change,
        &[
            "Create",
            "CreateClone",
            "Start",
            "Snapshot",
            "DeleteSnapshot",
            "Revert",
            "Grow",
            "AddReplica",
            "RemoveReplica",
            "ReplaceReplica",
            "SetRebuild",
            "SetLimits",
            "Export",
            "Unexport",
            "Recover",
            "Delete",
        ],
    ),
];

/// The class of the method at a path, `/PACKAGE.SERVICE/METHOD`. What is not known is a change.
pub(super) fn class_of(path: &str) -> Class {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Class::Change;
    };
    if SHOWING.contains(&service) {
        return Class::Read;
    }
    listed(service, method).unwrap_or(Class::Change)
}

fn listed(service: &str, method: &str) -> Option<Class> {
    let service = service.strip_prefix("ashlar.v1.")?;
    let found = METHODS.iter().find(|(of, _, methods)| *of == service && methods.contains(&method));
    found.map(|(_, class, _)| *class)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;

    /// `google.protobuf.FileDescriptorSet`, as far as it names methods (google/protobuf/descriptor.proto).
    #[derive(Clone, PartialEq, Message)]
    struct Files {
        #[prost(message, repeated, tag = "1")]
        file: Vec<File>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct File {
        #[prost(string, tag = "2")]
        package: String,
        #[prost(message, repeated, tag = "6")]
        service: Vec<Service>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Service {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        method: Vec<Method>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Method {
        #[prost(string, tag = "1")]
        name: String,
    }

    fn contract() -> BTreeSet<(String, String)> {
        let files = Files::decode(proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
        let ours = files.file.into_iter().filter(|file| file.package == "ashlar.v1");
        let services = ours.flat_map(|file| file.service);
        let methods =
            services.flat_map(|service| service.method.into_iter().map(move |m| (service.name.clone(), m.name)));
        methods.collect()
    }

    #[test]
    fn every_method_has_a_class_and_every_class_a_method() {
        let contract = contract();
        assert!(contract.len() > 40, "{contract:?}");
        let listed: Vec<_> = METHODS
            .iter()
            .flat_map(|(service, _, methods)| methods.iter().map(|method| (service.to_string(), method.to_string())))
            .collect();
        let classes: BTreeSet<_> = listed.iter().cloned().collect();
        assert_eq!(classes.len(), listed.len(), "one is listed twice");
        let lacking: Vec<_> = contract.difference(&classes).collect();
        assert!(lacking.is_empty(), "say in METHODS (and docs/security.md) what these do: {lacking:?}");
        let gone: Vec<_> = classes.difference(&contract).collect();
        assert!(gone.is_empty(), "the contract has no such methods any more: {gone:?}");
    }

    /// The names that the contract gives to what only reads: something else under such a name would be missed by who reads the table.
    #[test]
    fn what_reads_is_called_so() {
        for (service, method) in contract() {
            let class = listed(&format!("ashlar.v1.{service}"), &method);
            let named_so = method.starts_with("List")
                || method.starts_with("Get")
                || ["Info", "Events", "Watch", "WatchSnapshots"].contains(&&*method);
            assert_eq!(class == Some(Class::Read), named_so, "{service}.{method}");
        }
    }

    #[test]
    fn what_is_not_known_is_a_change() {
        for path in [
            "",
            "/",
            "/ashlar.v1.NodeService",
            "/ashlar.v1.NodeService/Else",
            "/ashlar.v2.NodeService/Info",
            "/x.Health/Check",
        ] {
            assert_eq!(class_of(path), Class::Change, "{path}");
        }
        assert_eq!(class_of("/grpc.health.v1.Health/Check"), Class::Read);
    }
}
