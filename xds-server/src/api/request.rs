//! Requests to commits: every resource checked and named, and every mistake with its path in the request.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_api::envoy_resources::{IdentityPattern, LocalitySelector, Selector};
use isthmus_proto::control::{self, operation, resource};
use isthmus_proto::pb::google::protobuf;
use isthmus_xds_core::catalog::Operation;
use isthmus_xds_core::{Commit, Document, Draft, Name, Source, TypeUrl};

use super::limits::{
    MAX_DOCUMENT_NAME_BYTES, MAX_MISTAKES, MAX_OPERATIONS, MAX_RESOURCES, MAX_SELECTOR_METADATA,
};
use crate::resources::{self, Envelope, Mistake};

/// Document, type and name of a resource.
pub(super) type ResourceKey = (Name, TypeUrl, Name);

/// What a request asks for, and where it says so.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) commit: Commit,
    /// The path in the request of each resource that it brings.
    pub(super) places: BTreeMap<ResourceKey, String>,
}

/// Reads a request.
pub(super) fn read(request: Request) -> Result<Asked, Vec<Mistake>> {
    let mut reader = Reader::default();
    let mut commit = Commit::new(Source::API);
    match request {
        Request::Commit(request) => {
            commit.if_generation = request.if_generation;
            if request.operations.len() > MAX_OPERATIONS {
                reader.fail(
                    "operations",
                    format!("at most {MAX_OPERATIONS} in one commit"),
                );
            } else {
                let operations = request.operations.into_iter().enumerate();
                for (index, operation) in operations {
                    let path = format!("operations[{index}]");
                    let read = reader.operation(&path, operation.change);
                    commit.operations.extend(read);
                }
            }
        }
        Request::Set(request) => {
            commit.if_generation = request.if_generation;
            let read = reader.set("document", request.document.unwrap_or_default());
            commit.operations.extend(read);
        }
        Request::Patch(request) => {
            commit.if_generation = request.if_generation;
            let read = reader.patch("patch", request.patch.unwrap_or_default());
            commit.operations.extend(read);
        }
        Request::Delete(request) => {
            commit.if_generation = request.if_generation;
            let name = reader.document_name("name", request.name);
            commit.operations.extend(name.map(Operation::Delete));
        }
    }
    let Reader { mistakes, places } = reader;
    if mistakes.is_empty() {
        Ok(Asked { commit, places })
    } else {
        Err(mistakes)
    }
}

/// The calls that change something.
#[derive(Debug)]
pub(super) enum Request {
    Commit(control::CommitRequest),
    Set(control::SetDocumentRequest),
    Patch(control::PatchDocumentRequest),
    Delete(control::DeleteDocumentRequest),
}

#[derive(Debug, Default)]
struct Reader {
    mistakes: Vec<Mistake>,
    places: BTreeMap<ResourceKey, String>,
}

impl Reader {
    fn fail(&mut self, path: &str, problem: String) {
        self.mistakes.push(Mistake::new(path, problem));
    }

    fn is_full(&self) -> bool {
        self.mistakes.len() >= MAX_MISTAKES
    }

    fn operation(&mut self, path: &str, change: Option<operation::Change>) -> Option<Operation> {
        if self.is_full() {
            return None;
        }
        match change {
            Some(operation::Change::Set(document)) => self.set(&format!("{path}.set"), document),
            Some(operation::Change::Patch(asked)) => self.patch(&format!("{path}.patch"), asked),
            Some(operation::Change::Delete(name)) => self
                .document_name(&format!("{path}.delete"), name)
                .map(Operation::Delete),
            None => {
                self.fail(path, "must have one of set, patch and delete".to_owned());
                None
            }
        }
    }

    fn set(&mut self, path: &str, document: control::Document) -> Option<Operation> {
        let name = self.document_name(&format!("{path}.name"), document.name);
        let selector = self.selector(
            &format!("{path}.selector"),
            document.selector.unwrap_or_default(),
        );
        let path = format!("{path}.resources");
        let resources = self.resources(&path, name.as_ref(), document.resources);
        Some(Operation::Set(Document {
            name: name?,
            selector: selector?,
            resources,
        }))
    }

    fn patch(&mut self, path: &str, asked: control::DocumentPatch) -> Option<Operation> {
        let name = self.document_name(&format!("{path}.name"), asked.name);
        let upserts = self.resources(&format!("{path}.upserts"), name.as_ref(), asked.upserts);
        let removals = asked.removals.into_iter();
        let removals: Vec<(TypeUrl, Name)> = removals
            .map(|it| (TypeUrl::from(it.type_url), Name::from(it.name)))
            .collect();
        let path = format!("{path}.removals");
        self.check_length(&path, removals.len());
        for (index, (type_url, name)) in removals.iter().enumerate() {
            let place = format!("{path}[{index}]");
            if type_url.is_empty() || name.is_empty() {
                self.fail(&place, "must have a type_url and a name".to_owned());
            } else if upserts
                .iter()
                .any(|it| it.type_url == *type_url && it.name == *name)
            {
                let problem = "is among the upserts too; leave it out of one of the two";
                self.fail(&place, problem.to_owned());
            }
            if self.is_full() {
                break;
            }
        }
        Some(Operation::Patch {
            document: name?,
            upserts,
            removals,
        })
    }

    fn document_name(&mut self, path: &str, name: String) -> Option<Name> {
        let problem = if name.is_empty() {
            "must not be empty".to_owned()
        } else if name.len() > MAX_DOCUMENT_NAME_BYTES {
            format!("has at most {MAX_DOCUMENT_NAME_BYTES} bytes")
        } else if name.chars().any(char::is_control) {
            "must not have control characters".to_owned()
        } else {
            return Some(Name::from(name));
        };
        self.fail(path, problem);
        None
    }

    fn selector(&mut self, path: &str, selector: control::Selector) -> Option<Selector> {
        if selector.metadata.len() > MAX_SELECTOR_METADATA {
            let problem = format!("has at most {MAX_SELECTOR_METADATA} entries");
            self.fail(&format!("{path}.metadata"), problem);
            return None;
        }
        let identity = match selector
            .identity
            .as_deref()
            .map(str::parse::<IdentityPattern>)
        {
            Some(Err(error)) => {
                self.fail(&format!("{path}.identity"), error.to_string());
                return None;
            }
            Some(Ok(pattern)) => Some(pattern),
            None => None,
        };
        let locality = selector.locality.unwrap_or_default();
        Some(Selector {
            id: selector.id,
            cluster: selector.cluster,
            identity,
            locality: LocalitySelector {
                region: locality.region,
                zone: locality.zone,
                sub_zone: locality.sub_zone,
            },
            metadata: selector.metadata.into_iter().collect(),
        })
    }

    fn check_length(&mut self, path: &str, length: usize) -> bool {
        let is_fine = length <= MAX_RESOURCES;
        if !is_fine {
            self.fail(path, format!("at most {MAX_RESOURCES}; split it"));
        }
        is_fine
    }

    fn resources(
        &mut self,
        path: &str,
        document: Option<&Name>,
        resources: Vec<control::Resource>,
    ) -> Vec<Draft> {
        if !self.check_length(path, resources.len()) {
            return Vec::new();
        }
        let mut drafts = Vec::with_capacity(resources.len());
        let mut seen: BTreeMap<(TypeUrl, Name), usize> = BTreeMap::new();
        for (index, resource) in resources.into_iter().enumerate() {
            if self.is_full() {
                break;
            }
            let path_here = format!("{path}[{index}]");
            let inner = match &resource.content {
                Some(resource::Content::Json(_)) => "json",
                Some(resource::Content::Any(_)) | None => "any",
            };
            let Some(draft) = self.resource(&path_here, resource) else {
                continue;
            };
            let key = (TypeUrl::clone(&draft.type_url), Name::clone(&draft.name));
            if let Some(first) = seen.get(&key) {
                let problem = format!("the same type and name as {path}[{first}]; rename one");
                self.fail(&path_here, problem);
                continue;
            }
            if let Some(document) = document {
                let place = (Name::clone(document), key.0.clone(), key.1.clone());
                self.places.insert(place, format!("{path_here}.{inner}"));
            }
            seen.insert(key, index);
            drafts.push(draft);
        }
        drafts
    }

    fn resource(&mut self, path: &str, resource: control::Resource) -> Option<Draft> {
        let ttl = match resource.ttl.as_ref().map(duration) {
            Some(None) => {
                self.fail(
                    &format!("{path}.ttl"),
                    "must be more than nothing".to_owned(),
                );
                return None;
            }
            Some(ttl) => ttl,
            None => None,
        };
        let envelope = Envelope {
            name: resource.name,
            aliases: resource.aliases,
            ttl,
        };
        let (inner, read) = match resource.content {
            Some(resource::Content::Any(any)) => (
                "any",
                resources::draft(&any.type_url, any.value.into(), envelope),
            ),
            Some(resource::Content::Json(text)) => {
                ("json", resources::draft_of_json(&text, envelope))
            }
            None => {
                self.fail(path, "must have one of any and json".to_owned());
                return None;
            }
        };
        match read {
            Ok(draft) => Some(draft),
            Err(invalid) => {
                for mistake in invalid.0 {
                    let place = match &*mistake.path {
                        "" => format!("{path}.{inner}"),
                        "aliases" => format!("{path}.aliases"),
                        field => format!("{path}.{inner}.{field}"),
                    };
                    self.fail(&place, mistake.problem);
                }
                None
            }
        }
    }
}

// `None` if it is no time that something can last.
fn duration(duration: &protobuf::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos)
        .ok()
        .filter(|it| *it < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos)).filter(|it| !it.is_zero())
}
