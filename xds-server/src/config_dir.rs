//! The configuration directory: files of `EnvoyResources` documents as encoded resources.
//!
//! [`load`] reads a directory once; [`watch`](watch::watch) keeps reading it. A directory is one commit: it
//! loads whole or, with one error in one file, not at all, so that a client never gets half of a change.
//!
//! ```text
//!  files ──read──▶ text ──yaml──▶ tree ──envelope──▶ selector, name
//!                                   └────encode────▶ bytes (by descriptor)
//! ```
//!
//! * Documents of all files together are one set; how they are spread over files means nothing.
//! * A `metadata.name` is given once. A resource, by type and name, is given once to any one client: two
//!   documents may both give it if their selectors cannot match the same client.
//! * A selector that no client matches is no error: clients come and go.
//! * A directory without configuration files is an error, as is a file without a document. Both are what
//!   replacing a directory or a file looks like halfway. A document with `resources: []` serves nothing
//!   on purpose.

mod encode;
mod envelope;
mod error;
pub mod limits;
mod name;
mod read;
mod suggest;
mod yaml;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_api::API_VERSION;
use isthmus_api::envoy_resources::{EnvoyResources, KIND, Selector};
use prost_reflect::DescriptorPool;
use serde::Deserialize;

use self::encode::{Finding, encode_resource, message_of};
use self::read::Fingerprint;
use self::yaml::{Content, Document, Node, SyntaxError, SyntaxReason};

pub use self::error::{ConfigError, Io, Origin, Place, Problem, ResourceLabel, Suggestion};

/// Everything that a directory says, checked and encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedConfig {
    /// By file name, then by position in the file.
    pub documents: Vec<LoadedDocument>,
}

/// One `EnvoyResources` document.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedDocument {
    /// `metadata.name`, unique in the directory.
    pub name: Arc<str>,
    /// Where it is written.
    pub origin: Origin,
    /// The clients that get the resources.
    pub selector: Selector,
    /// In the order of the document.
    pub resources: Vec<LoadedResource>,
}

/// One resource, ready to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedResource {
    /// `type.googleapis.com/` and the full name of the message.
    pub type_url: Arc<str>,
    /// The name that clients ask for.
    pub name: Arc<str>,
    /// The canonical protobuf encoding of the message, which is an `Any`'s `value`: equal documents give
    /// equal bytes, always.
    pub value: Bytes,
    /// Where it is written.
    pub origin: Origin,
}

/// Reads and checks a whole directory.
///
/// Blocks on file I/O and takes about a second of CPU for 30 MB of YAML.
///
/// # Errors
///
/// Everything that is wrong, up to [`limits::MAX_ERRORS`], by file and line. Nothing of the directory may
/// be used then.
pub fn load(dir: &Path) -> Result<LoadedConfig, Vec<ConfigError>> {
    load_with_fingerprint(dir).map(|(config, _)| config)
}

/// Checks the text of one file as [`load`] does, without what needs the other files.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read_text(file: &str, text: &str) -> Result<Vec<LoadedDocument>, Vec<ConfigError>> {
    let mut loader = Loader::new();
    loader.file(&Arc::from(file), text);
    loader.finish().map(|config| config.documents)
}

fn load_with_fingerprint(dir: &Path) -> Result<(LoadedConfig, Fingerprint), Vec<ConfigError>> {
    let whole: Arc<str> = dir.to_string_lossy().into();
    let of_directory = |problem| vec![error_in(&whole, problem)];
    let before = Fingerprint::take(dir).map_err(of_directory)?;
    let mut loader = Loader::new();
    let mut total_bytes = 0;
    for name in before.names() {
        let file: Arc<str> = name.to_string_lossy().into();
        match read::read_file(&dir.join(name)) {
            Ok(text) => {
                total_bytes += text.len() as u64;
                if total_bytes > limits::MAX_TOTAL_BYTES {
                    loader.errors.push(error_in(&file, Problem::TotalTooLarge));
                    break;
                }
                loader.file(&file, &text);
            }
            Err(problem) => loader.errors.push(error_in(&file, problem)),
        }
    }
    let after = Fingerprint::take(dir).map_err(of_directory)?;
    if before != after {
        return Err(vec![error_in(&whole, Problem::DirectoryChanging)]);
    }
    Ok((loader.finish()?, after))
}

#[derive(Debug)]
struct Loader {
    documents: Vec<LoadedDocument>,
    errors: Vec<ConfigError>,
    pool: &'static DescriptorPool,
}

impl Loader {
    fn new() -> Self {
        Self {
            documents: Vec::new(),
            errors: Vec::new(),
            pool: isthmus_proto::descriptor_pool(),
        }
    }

    fn file(&mut self, file: &Arc<str>, text: &str) {
        let (documents, syntax_error) = yaml::parse_documents(text);
        if documents.is_empty() && syntax_error.is_none() {
            self.errors.push(error_in(file, Problem::EmptyFile));
        }
        for document in documents {
            self.document(file, document);
        }
        if let Some(error) = syntax_error {
            self.errors.push(from_syntax(file, error));
        }
    }

    fn document(&mut self, file: &Arc<str>, document: Document) {
        let Document { number, mut root } = document;
        let name = root
            .lookup("metadata")
            .and_then(|metadata| metadata.lookup("name"));
        let place = Place {
            file: Arc::clone(file),
            line: Some(root.line),
            column: None,
            document: Some(number),
            document_name: name
                .and_then(Node::text)
                .filter(|name| !name.is_empty())
                .map(Arc::from),
            path: None,
            resource: None,
        };
        if let Err((path, line, problem)) = check_kind(&root) {
            let place = Place {
                path: Some(path),
                line: Some(line),
                ..place
            };
            self.errors.push(ConfigError { place, problem });
            return;
        }
        let resources = take_resources(&mut root);
        let frame = EnvoyResources::deserialize(&root);
        let resources = self.resources(&place, resources.as_ref());
        let frame = match frame {
            Ok(frame) if frame.metadata.name.is_empty() => {
                let place = Place {
                    path: Some("metadata.name".to_owned()),
                    ..place
                };
                self.errors.push(ConfigError {
                    place,
                    problem: Problem::EmptyName,
                });
                return;
            }
            Ok(frame) => frame,
            Err(error) => {
                let (path, line, problem) = error.into_parts();
                let place = Place {
                    path: Some(path),
                    line: line.or(place.line),
                    ..place
                };
                self.errors.push(ConfigError { place, problem });
                return;
            }
        };
        self.documents.push(LoadedDocument {
            name: frame.metadata.name.into(),
            origin: Origin {
                file: Arc::clone(file),
                document: number,
                line: root.line,
                resource: None,
            },
            selector: frame.spec.selector,
            resources,
        });
    }

    fn resources(&mut self, place: &Place, resources: Option<&Node>) -> Vec<LoadedResource> {
        const PATH: &str = "spec.resources";
        let Some(node) = resources else {
            return Vec::new();
        };
        let Content::Sequence(items) = &node.content else {
            let place = Place {
                path: Some(PATH.to_owned()),
                line: Some(node.line),
                ..place.clone()
            };
            let problem = Problem::WrongType {
                expected: "a list".to_owned(),
                found: node.type_name(),
                hint: "",
            };
            self.errors.push(ConfigError { place, problem });
            return Vec::new();
        };
        let mut loaded = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match self.resource(place, index, item, &format!("{PATH}[{index}]")) {
                Ok(resource) => loaded.push(resource),
                Err(findings) => {
                    let label = self.label(item);
                    self.errors.extend(findings.into_iter().map(
                        |Finding {
                             line,
                             path,
                             problem,
                         }| {
                            let (line, path, resource) = (Some(line), Some(path), label.clone());
                            ConfigError {
                                place: Place {
                                    line,
                                    path,
                                    resource,
                                    ..place.clone()
                                },
                                problem,
                            }
                        },
                    ));
                }
            }
            if self.errors.len() >= limits::MAX_ERRORS {
                break;
            }
        }
        loaded
    }

    fn resource(
        &self,
        place: &Place,
        index: usize,
        node: &Node,
        path: &str,
    ) -> Result<LoadedResource, Vec<Finding>> {
        let encoded = encode_resource(self.pool, node, path)?;
        let at_node = |problem| {
            vec![Finding {
                line: node.line,
                path: path.to_owned(),
                problem,
            }]
        };
        let message = &encoded.message;
        let Some(field) = name::name_field(message) else {
            let message = message.full_name().to_owned();
            return Err(at_node(Problem::Nameless { message }));
        };
        match name::name_of(&field, node) {
            Some("") => Err(vec![Finding {
                line: node.line,
                path: format!("{path}.{}", field.name()),
                problem: Problem::EmptyName,
            }]),
            Some(name) => Ok(LoadedResource {
                type_url: encoded.type_url,
                name: name.into(),
                value: encoded.value.into(),
                origin: Origin {
                    file: Arc::clone(&place.file),
                    document: place.document.unwrap_or(1),
                    line: node.line,
                    resource: Some(index),
                },
            }),
            None => Err(at_node(Problem::MissingName {
                field: field.name().to_owned(),
            })),
        }
    }

    fn label(&self, node: &Node) -> Option<ResourceLabel> {
        let message = message_of(self.pool, node)?;
        let name =
            name::name_field(&message).and_then(|field| name::name_of(&field, node).map(Arc::from));
        Some(ResourceLabel {
            message: message.full_name().into(),
            name,
        })
    }

    fn finish(mut self) -> Result<LoadedConfig, Vec<ConfigError>> {
        self.check_document_names();
        self.check_resource_names();
        if self.errors.is_empty() {
            return Ok(LoadedConfig {
                documents: self.documents,
            });
        }
        self.errors.truncate(limits::MAX_ERRORS);
        Err(self.errors)
    }

    fn check_document_names(&mut self) {
        let mut first: BTreeMap<&str, &Origin> = BTreeMap::new();
        for document in &self.documents {
            let Some(other) = first.get(&*document.name) else {
                first.insert(&document.name, &document.origin);
                continue;
            };
            let place = place_in(
                document,
                &document.origin,
                Some("metadata.name".to_owned()),
                None,
            );
            let problem = Problem::DuplicateDocument {
                other: (*other).clone(),
            };
            self.errors.push(ConfigError { place, problem });
        }
    }

    fn check_resource_names(&mut self) {
        // Of one type and name, by the selector's id: documents for one client each, which may be
        // thousands and all have a "listener", are never compared with each other.
        type ById<'a> = BTreeMap<Option<&'a str>, Vec<(&'a LoadedDocument, &'a LoadedResource)>>;
        let mut taken: BTreeMap<(&str, &str), ById<'_>> = BTreeMap::new();
        for document in &self.documents {
            for resource in &document.resources {
                if self.errors.len() >= limits::MAX_ERRORS {
                    return;
                }
                let rivals = taken
                    .entry((&resource.type_url, &resource.name))
                    .or_default();
                let id = document.selector.id.as_deref();
                let overlaps = |(other, _): &&(&LoadedDocument, &LoadedResource)| {
                    other.selector.may_overlap(&document.selector)
                };
                let rival = match id {
                    Some(_) => [id, None]
                        .iter()
                        .find_map(|id| rivals.get(id)?.iter().find(overlaps)),
                    None => rivals
                        .values()
                        .find_map(|rivals| rivals.iter().find(overlaps)),
                };
                if let Some((_, other)) = rival {
                    let path = resource
                        .origin
                        .resource
                        .map(|index| format!("spec.resources[{index}]"));
                    let message = resource
                        .type_url
                        .trim_start_matches(encode::TYPE_URL_PREFIX);
                    let label = ResourceLabel {
                        message: message.into(),
                        name: Some(Arc::clone(&resource.name)),
                    };
                    let place = place_in(document, &resource.origin, path, Some(label));
                    let problem = Problem::DuplicateResource {
                        other: other.origin.clone(),
                    };
                    self.errors.push(ConfigError { place, problem });
                } else {
                    rivals.entry(id).or_default().push((document, resource));
                }
            }
        }
    }
}

fn check_kind(root: &Node) -> Result<(), (String, usize, Problem)> {
    let fail = |path: &str, line, problem| Err((path.to_owned(), line, problem));
    if root.entries().is_none() {
        let expected = format!("a mapping with apiVersion, kind, metadata and spec ({KIND})");
        let problem = Problem::WrongType {
            expected,
            found: root.type_name(),
            hint: "",
        };
        return fail("", root.line, problem);
    }
    for (key, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let Some(value) = root.lookup(key) else {
            return fail("", root.line, Problem::MissingKey { key });
        };
        let problem = match value.text() {
            Some(found) if found == expected => continue,
            Some(found) if key == "kind" => Problem::BadKind {
                expected,
                found: found.to_owned(),
            },
            Some(found) => Problem::BadApiVersion {
                expected,
                found: found.to_owned(),
            },
            None => Problem::WrongType {
                expected: "a string".to_owned(),
                found: value.type_name(),
                hint: "",
            },
        };
        return fail(key, value.line, problem);
    }
    Ok(())
}

/// Takes `spec.resources` out of the tree, so that reading the frame does not copy them. If the key is there
/// twice it stays, for the frame's reader to find.
fn take_resources(root: &mut Node) -> Option<Node> {
    let spec = root
        .entries_mut()?
        .iter_mut()
        .find(|entry| &*entry.key == "spec")?;
    let entries = spec.value.entries_mut()?;
    let mut places = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| &*entry.key == "resources");
    let (index, _) = places.next()?;
    if places.next().is_some() {
        return None;
    }
    Some(entries.remove(index).value)
}

fn from_syntax(file: &Arc<str>, error: SyntaxError) -> ConfigError {
    let SyntaxError {
        document,
        line,
        column,
        reason,
    } = error;
    let problem = match reason {
        SyntaxReason::AliasBudget => Problem::TooManyAliases,
        SyntaxReason::AliasLoop => Problem::AliasLoop,
        SyntaxReason::ComplexKey => Problem::Unsupported {
            what: "null, lists and mappings as keys",
        },
        SyntaxReason::CustomTag => Problem::Unsupported {
            what: "custom tags",
        },
        SyntaxReason::Depth => Problem::TooDeep,
        SyntaxReason::Scan(reason) => Problem::Syntax { reason },
    };
    let place = Place {
        line: Some(line),
        column: Some(column),
        document: Some(document),
        ..error_in(file, Problem::EmptyFile).place
    };
    ConfigError { place, problem }
}

fn error_in(file: &Arc<str>, problem: Problem) -> ConfigError {
    let place = Place {
        file: Arc::clone(file),
        line: None,
        column: None,
        document: None,
        document_name: None,
        path: None,
        resource: None,
    };
    ConfigError { place, problem }
}

fn place_in(
    document: &LoadedDocument,
    origin: &Origin,
    path: Option<String>,
    resource: Option<ResourceLabel>,
) -> Place {
    Place {
        file: Arc::clone(&origin.file),
        line: Some(origin.line),
        column: None,
        document: Some(origin.document),
        document_name: Some(Arc::clone(&document.name)),
        path,
        resource,
    }
}

/// Appends a key to a path: `.key`, or `["key"]` if it is not a plain word.
fn push_key(path: &mut String, key: &str) {
    let is_word = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '@' | '-');
    if !key.is_empty() && key.len() <= limits::MAX_QUOTED_BYTES && key.chars().all(is_word) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        path.push_str(&format!("[{}]", error::Quoted(key)));
    }
}
