//! Text to documents: the frame of each, its resources, and all that is wrong with them.

use std::sync::Arc;

use isthmus_api::API_VERSION;
use isthmus_api::envoy_resources::{EnvoyResources, KIND};
use isthmus_xds_core::Name;
use isthmus_xds_core::xdstp::canonical;
use prost_reflect::{DescriptorPool, FieldDescriptor};
use serde::Deserialize;

use crate::validate::path::Step;
use crate::validate::references::{Binding, Reference, bindings, references};
use crate::validate::rules::{self, Violation};

use super::encode::{Encoded, Finding, TYPE_URL_PREFIX, encode_resource, message_of};
use super::error::{ConfigError, Origin, Place, Problem, ResourceLabel};
use super::limits::MAX_ERRORS;
use super::links::{Link, Links, check_links};
use super::locate::locate;
use super::name::{name_field, name_of};
use super::unique::check_names;
use super::wrapper::{Opened, body_of, may_be_named_apart, open};
use super::yaml::{self, Content, Document, Node, SyntaxError, SyntaxReason};
use super::{LoadedConfig, LoadedDocument, LoadedResource};

const LISTENER: &str = "envoy.config.listener.v3.Listener";

/// Collects the documents of files and everything that is wrong with them.
#[derive(Debug)]
pub(super) struct Loader {
    documents: Vec<LoadedDocument>,
    errors: Vec<ConfigError>,
    /// One of each document.
    links: Vec<Links>,
    pool: &'static DescriptorPool,
}

impl Loader {
    pub(super) fn new() -> Self {
        Self {
            documents: Vec::new(),
            errors: Vec::new(),
            links: Vec::new(),
            pool: isthmus_proto::descriptor_pool(),
        }
    }

    /// Takes a file's text.
    pub(super) fn file(&mut self, file: &Arc<str>, text: &str) {
        let (documents, syntax_error) = yaml::parse_documents(text);
        if documents.is_empty() && syntax_error.is_none() {
            self.error(file, Problem::EmptyFile);
        }
        for document in documents {
            if self.is_full() {
                return;
            }
            self.document(file, document);
        }
        if let Some(error) = syntax_error {
            self.errors.push(from_syntax(file, error));
        }
    }

    /// Whether there are as many errors as are reported.
    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// Takes what is wrong with a file or the directory.
    pub(super) fn error(&mut self, file: &Arc<str>, problem: Problem) {
        self.errors.push(ConfigError::of_file(file, problem));
    }

    fn document(&mut self, file: &Arc<str>, document: Document) {
        let Document { number, mut root } = document;
        let name = root
            .lookup("metadata")
            .and_then(|metadata| metadata.lookup("name"));
        let name_line = name.map(|name| name.line);
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
        if let Some((path, line, problem)) = misfit(&root) {
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
        let mut links = Links::default();
        let resources = self.resources(&place, resources.as_ref(), &mut links);
        let frame = match frame {
            Ok(frame) if frame.metadata.name.is_empty() => {
                let line = Some(name_line.unwrap_or(root.line));
                let place = Place {
                    line,
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
        self.links.push(links);
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

    fn resources(
        &mut self,
        place: &Place,
        resources: Option<&Node>,
        links: &mut Links,
    ) -> Vec<LoadedResource> {
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
            let path = format!("{PATH}[{index}]");
            match self.resource(place, index, item, &path, links) {
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
            if self.is_full() {
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
        links: &mut Links,
    ) -> Result<LoadedResource, Vec<Finding>> {
        let opened = open(self.pool, node, path)?;
        let (body, path) = (opened.body, &*opened.path);
        let encoded = encode_resource(self.pool, body, path)?;
        let message = encoded.type_url.trim_start_matches(TYPE_URL_PREFIX);
        let name = name_in(&opened, &encoded).map(Name::from);
        let violations = match &encoded.message {
            Some(message) => rules::check(message.full_name(), &encoded.value),
            None => Vec::new(),
        };
        let name = match name {
            Ok(name) if violations.is_empty() => canonical(&name).into_owned(),
            Ok(_) => return Err(from_violations(body, path, violations)),
            Err(unnamed) => {
                let Some(field) = encoded.message.as_ref().and_then(name_field) else {
                    return Err(vec![*unnamed]);
                };
                // The rules would say it again.
                let others = violations.into_iter().filter(|violation| {
                    !matches!(&*violation.path, [Step::Field { name, .. }] if **name == *field.name())
                });
                let others = from_violations(body, path, others.collect());
                return Err(std::iter::once(*unnamed).chain(others).collect());
            }
        };
        let label = ResourceLabel {
            message: message.into(),
            name: Some(Arc::clone(&name)),
        };
        links_of(body, path, index, &label, &encoded.value, links);
        let aliases = opened
            .aliases
            .iter()
            .map(|alias| canonical(alias).into_owned());
        Ok(LoadedResource {
            name,
            aliases: aliases.collect(),
            ttl: opened.ttl,
            type_url: encoded.type_url,
            value: encoded.value.into(),
            origin: Origin {
                file: Arc::clone(&place.file),
                document: place.document.unwrap_or(1),
                line: node.line,
                resource: Some(index),
            },
        })
    }

    fn label(&self, node: &Node) -> Option<ResourceLabel> {
        let outer = node.lookup("name").and_then(Node::text);
        let node = body_of(node);
        let message = message_of(self.pool, node)?;
        let own = name_field(&message).and_then(|field| name_of(&field, node));
        let name = own.or(outer).map(Arc::from);
        Some(ResourceLabel {
            message: message.full_name().into(),
            name,
        })
    }

    /// Checks what only all files together show, and gives the outcome.
    pub(super) fn finish(mut self) -> Result<LoadedConfig, Vec<ConfigError>> {
        check_names(&self.documents, &mut self.errors);
        let warnings = check_links(&self.documents, &self.links, &mut self.errors);
        if self.errors.is_empty() {
            return Ok(LoadedConfig {
                documents: self.documents,
                warnings,
            });
        }
        self.errors.truncate(MAX_ERRORS);
        Err(self.errors)
    }
}

/// Tells what is wrong if the tree is no document of this kind: path, line and problem.
fn misfit(root: &Node) -> Option<(String, usize, Problem)> {
    let fail = |path: &str, line, problem| Some((path.to_owned(), line, problem));
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
    None
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

/// The name that clients ask for: that of the wrapper, or the one that the message has.
fn name_in<'a>(opened: &'a Opened<'_>, encoded: &Encoded) -> Result<&'a str, Box<Finding>> {
    let Opened { body, path, .. } = opened;
    let Some(field) = encoded.message.as_ref().and_then(name_field) else {
        let message = encoded.type_url.trim_start_matches(TYPE_URL_PREFIX);
        let nameless = || Finding {
            line: body.line,
            path: path.clone(),
            problem: Problem::Nameless {
                message: message.to_owned(),
            },
        };
        let named = opened.name.as_ref().map(|named| &*named.name);
        return named.ok_or_else(|| Box::new(nameless()));
    };
    let own = check_name(&field, body, path)?;
    match &opened.name {
        None => Ok(own),
        Some(named) if named.name == own => Ok(own),
        Some(named) if may_be_named_apart(&encoded.type_url, &named.name) => Ok(&named.name),
        Some(named) => Err(Box::new(Finding {
            line: named.line,
            path: named.path.clone(),
            problem: Problem::MisnamedWrapper {
                own: own.to_owned(),
            },
        })),
    }
}

fn check_name<'a>(
    field: &FieldDescriptor,
    node: &'a Node,
    path: &str,
) -> Result<&'a str, Box<Finding>> {
    let line = node.line;
    match name_of(field, node) {
        Some("") => Err(Box::new(Finding {
            line,
            path: format!("{path}.{}", field.name()),
            problem: Problem::EmptyName,
        })),
        Some(name) => Ok(name),
        None => Err(Box::new(Finding {
            line,
            path: path.to_owned(),
            problem: Problem::MissingName {
                field: field.name().to_owned(),
            },
        })),
    }
}

/// Keeps what a resource says about others; only all documents together show whether it is right.
fn links_of(
    node: &Node,
    path: &str,
    index: usize,
    label: &ResourceLabel,
    value: &[u8],
    links: &mut Links,
) {
    for Reference {
        path: steps,
        target,
        name,
    } in references(&label.message, value)
    {
        let (line, path) = locate(node, path, &steps);
        let (resource, what) = (label.clone(), (target, name));
        links.names.push(Link {
            line,
            path,
            resource,
            index,
            what,
        });
    }
    if &*label.message == LISTENER {
        for Binding {
            path: steps,
            address,
        } in bindings(value)
        {
            let (line, path) = locate(node, path, &steps);
            let (resource, what) = (label.clone(), address);
            links.bindings.push(Link {
                line,
                path,
                resource,
                index,
                what,
            });
        }
    }
}

fn from_violations(node: &Node, path: &str, violations: Vec<Violation>) -> Vec<Finding> {
    let of = |Violation {
                  path: steps,
                  requirement,
              }| {
        let (line, path) = locate(node, path, &steps);
        Finding {
            line,
            path,
            problem: Problem::Violation(Box::new(requirement)),
        }
    };
    let mut findings: Vec<Finding> = violations.into_iter().map(of).collect();
    findings.sort_by_key(|finding| finding.line);
    findings
}

pub(super) fn from_syntax(file: &Arc<str>, error: SyntaxError) -> ConfigError {
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
        ..Place::of_file(file)
    };
    ConfigError { place, problem }
}
