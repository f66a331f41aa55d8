//! `isthmus-xds diff`: what a directory would send to one client that has another.
//!
//! Versions are hashes of content, so comparing them is comparing content; the content itself, which may be
//! secret, is never looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use isthmus_api::envoy_resources::{Identity, NodeView};
use isthmus_proto::pb::envoy::service::discovery::v3::Resource as Wire;
use isthmus_proto::pb::google::protobuf::Any;
use isthmus_xds_core::{Catalog, Commit, Resource, Source};
use prost::encoding::{message, string};
use serde_json::{Value, json};

use super::running::{self, Held};
use super::{Format, Outcome, count};
use crate::config_dir;
use crate::documents;
use crate::metrics::short_name;

const EXAMPLES: &str = "\
Examples:
  What would the running server send to one sidecar if ./config were its directory:
    isthmus-xds diff ./config --node web-1

  What a branch changes for the gateways of a zone:
    isthmus-xds diff ./new --against ./old --node gw --cluster edge --locality eu/eu-1/a --metadata role=gateway

A client that is not connected to the server is taken to hold nothing. Bytes are those of the resources in an
incremental response; a state-of-the-world client gets the whole type again when it changes.

Exits 0 if the comparison was made, whatever it found, 1 if a directory is not right, 2 if the server cannot
be asked.";

/// Shows what a change of a directory would send to one client.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Diff {
    /// Directory of `EnvoyResources` documents that would be served.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The client's node.id.
    #[arg(long, value_name = "ID")]
    node: String,

    /// The client's node.cluster.
    #[arg(long, value_name = "NAME", default_value = "")]
    cluster: String,

    /// The client's node.locality; what is left out is empty.
    #[arg(long, value_name = "REGION[/ZONE[/SUBZONE]]", default_value = "")]
    locality: String,

    /// An entry of the client's node.metadata; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,

    /// Who the client is proven to be: a SPIFFE ID, or uid:NUMBER.
    #[arg(long, value_name = "ID")]
    identity: Option<Identity>,

    /// Directory that is served so far; the running server is asked if it is left out.
    #[arg(long, value_name = "DIR", conflicts_with = "server")]
    against: Option<PathBuf>,

    /// Admin address of the running server.
    #[arg(long, value_name = "URL", default_value = running::DEFAULT_SERVER)]
    server: String,

    /// How to print the answer.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A resource and what sending it takes.
#[derive(Clone, Debug)]
struct Offer {
    bytes: usize,
    version: String,
}

/// By type URL and name.
type Offers = BTreeMap<String, BTreeMap<String, Offer>>;

/// What changes of one type.
#[derive(Debug, Default)]
struct Delta {
    added: Vec<(String, usize)>,
    changed: Vec<(String, usize)>,
    removed: Vec<(String, usize)>,
    unchanged: usize,
}

impl Diff {
    pub(super) fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Outcome> {
        let Some(after) = self.offers(&self.dir, err)? else {
            return Ok(Outcome::Bad);
        };
        let before: Held = if let Some(dir) = &self.against {
            let Some(offers) = self.offers(dir, err)? else {
                return Ok(Outcome::Bad);
            };
            let versions = |(url, names): (String, BTreeMap<String, Offer>)| {
                let names = names.into_iter().map(|(name, offer)| (name, offer.version));
                (url, names.collect())
            };
            offers.into_iter().map(versions).collect()
        } else {
            match running::held_by(&self.server, &self.node) {
                Ok(Some(held)) => held,
                Ok(None) => {
                    writeln!(
                        err,
                        "{:?} is not connected to {}: it holds nothing",
                        self.node, self.server
                    )?;
                    Held::new()
                }
                Err(error) => {
                    writeln!(
                        err,
                        "isthmus-xds: {error}; give the directory that is served with --against"
                    )?;
                    return Ok(Outcome::Unanswered);
                }
            }
        };
        let deltas = compare(&before, &after);
        match self.output {
            Format::Json => writeln!(out, "{:#}", json(&self.node, &deltas))?,
            Format::Text => text(out, &deltas)?,
        }
        Ok(Outcome::Good)
    }

    /// What the client gets of a directory; `None` if it is not right, which is then said.
    fn offers(&self, dir: &Path, err: &mut dyn Write) -> io::Result<Option<Offers>> {
        let config = match config_dir::load(dir) {
            Ok(config) => config,
            Err(errors) => {
                for error in errors {
                    writeln!(err, "error: {}: {error}", dir.display())?;
                }
                return Ok(None);
            }
        };
        let mut catalog = Catalog::new();
        let commit = Commit::new(Source::CONFIG_DIR).replace(documents::from_config_dir(&config));
        if let Err(error) = catalog.commit(commit) {
            writeln!(err, "error: {}: {error}", dir.display())?;
            return Ok(None);
        }
        let mut locality = self.locality.splitn(3, '/');
        let mut part = || locality.next().unwrap_or_default();
        let metadata: BTreeMap<String, String> = self.metadata.iter().cloned().collect();
        let scope = catalog.scope_of(&NodeView {
            id: &self.node,
            cluster: &self.cluster,
            identity: self.identity.as_ref(),
            region: part(),
            zone: part(),
            sub_zone: part(),
            metadata: &metadata,
        });
        let view = catalog.view(&scope);
        let of_type = |(url, set): (&_, &std::sync::Arc<isthmus_xds_core::TypeSet>)| {
            let url: &std::sync::Arc<str> = url;
            let offers = set
                .resources()
                .map(|resource| (resource.name().to_string(), offer(url, resource)));
            (url.to_string(), offers.collect())
        };
        Ok(Some(view.types().map(of_type).collect()))
    }
}

fn offer(type_url: &str, resource: &Resource) -> Offer {
    let version = resource.version().to_string();
    let wire = Wire {
        name: resource.name().to_string(),
        version: version.clone(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value: resource.value().to_vec(),
        }),
        ..Wire::default()
    };
    Offer {
        bytes: message::encoded_len(2, &wire),
        version,
    }
}

fn compare(before: &Held, after: &Offers) -> BTreeMap<String, Delta> {
    let urls: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let (nothing_held, nothing_offered) = (BTreeMap::new(), BTreeMap::new());
    let mut deltas = BTreeMap::new();
    for url in urls {
        let held = before.get(url).unwrap_or(&nothing_held);
        let offered = after.get(url).unwrap_or(&nothing_offered);
        let mut delta = Delta::default();
        for (name, offer) in offered {
            match held.get(name) {
                None => delta.added.push((name.clone(), offer.bytes)),
                Some(version) if *version == offer.version => delta.unchanged += 1,
                Some(_) => delta.changed.push((name.clone(), offer.bytes)),
            }
        }
        let removed = held.keys().filter(|name| !offered.contains_key(*name));
        delta.removed = removed
            .map(|name| (name.clone(), string::encoded_len(6, name)))
            .collect();
        deltas.insert(url.clone(), delta);
    }
    deltas
}

impl Delta {
    fn bytes(&self) -> usize {
        let all = self.added.iter().chain(&self.changed).chain(&self.removed);
        all.map(|(_, bytes)| bytes).sum()
    }
}

fn text(out: &mut dyn Write, deltas: &BTreeMap<String, Delta>) -> io::Result<()> {
    for (url, delta) in deltas {
        let lists = [
            ("+", &delta.added),
            ("~", &delta.changed),
            ("-", &delta.removed),
        ];
        for (sign, list) in lists {
            for (name, _) in list {
                writeln!(out, "{sign} {} {}", short_name(url), name.escape_debug())?;
            }
        }
    }
    let width = deltas
        .keys()
        .map(|url| short_name(url).len())
        .max()
        .unwrap_or(0)
        .max(5);
    writeln!(
        out,
        "{:width$} {:>7} {:>7} {:>7} {:>9} {:>10}",
        "TYPE", "ADDED", "CHANGED", "REMOVED", "UNCHANGED", "BYTES"
    )?;
    for (url, delta) in deltas {
        let (added, changed, removed) =
            (delta.added.len(), delta.changed.len(), delta.removed.len());
        writeln!(
            out,
            "{:width$} {added:>7} {changed:>7} {removed:>7} {:>9} {:>10}",
            short_name(url),
            delta.unchanged,
            delta.bytes(),
        )?;
    }
    let sum = |of: fn(&Delta) -> usize| deltas.values().map(of).sum::<usize>();
    writeln!(
        out,
        "sends {} in {}, removes {}",
        count(sum(Delta::bytes), "byte"),
        count(
            sum(|delta| delta.added.len() + delta.changed.len()),
            "resource"
        ),
        count(sum(|delta| delta.removed.len()), "resource"),
    )
}

fn json(node: &str, deltas: &BTreeMap<String, Delta>) -> Value {
    let list = |list: &[(String, usize)]| {
        let of = |(name, bytes): &(String, usize)| json!({ "name": name, "bytes": bytes });
        list.iter().map(of).collect::<Vec<_>>()
    };
    let of_type = |(url, delta): (&String, &Delta)| {
        json!({
            "typeUrl": url,
            "added": list(&delta.added),
            "changed": list(&delta.changed),
            "removed": list(&delta.removed),
            "unchanged": delta.unchanged,
            "bytes": delta.bytes(),
        })
    };
    json!({
        "node": node,
        "bytes": deltas.values().map(Delta::bytes).sum::<usize>(),
        "types": deltas.iter().map(of_type).collect::<Vec<_>>(),
    })
}
