//! Our server as a process that takes commands: the library as `isthmus-xds` runs it, with a
//! file of resources in place of the directory.
//!
//! Commands, one a line, each answered by a line: `load GROUP FILE`, `prepare ID GROUP FILE`,
//! `schedule START_NS INTERVAL_NS ID…` (applies each change at its planned time), `settle`.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;
use isthmus_xds::grpc::DiscoveryService;
use isthmus_xds::http2;
use isthmus_xds::plane::Plane;
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::{Document, Extras, Name, TypeUrl};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::resources::{self, Kind, TYPE_URLS};
use crate::{clock, process};

/// Serves until the end of standard input.
pub(crate) fn run() -> anyhow::Result<()> {
    process::raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let plane = Arc::new(Plane::new());
    let (_stopping, stopped) = watch::channel(false);
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    println!("listening {}", listener.local_addr()?.port());
    let service = DiscoveryService::new(Arc::clone(&plane), "isthmus-bench".into(), stopped);
    let server = runtime.spawn(async move {
        http2::serve(service, http2::tcp(listener), std::future::pending()).await;
    });
    let mut commands = Commands {
        plane,
        documents: Vec::new(),
        prepared: HashMap::new(),
    };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = commands.run(&line).with_context(|| line.clone())?;
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    server.abort();
    runtime.shutdown_background();
    Ok(())
}

struct Commands {
    plane: Arc<Plane>,
    documents: Vec<Document>,
    prepared: HashMap<String, (Name, Vec<Draft>)>,
}

impl Commands {
    fn run(&mut self, line: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words {
            ["load", group, file] => {
                self.documents.retain(|it| &*it.name != group);
                self.documents.push(Document {
                    name: Name::from(group),
                    selector: Selector {
                        cluster: Some(group.to_owned()),
                        ..Selector::default()
                    },
                    resources: drafts(Path::new(file))?,
                });
                self.plane.publish(self.documents.clone());
            }
            ["prepare", id, group, file] => {
                let change = (Name::from(group), drafts(Path::new(file))?);
                self.prepared.insert(id.to_owned(), change);
            }
            ["schedule", start, interval, ref ids @ ..] => {
                let start = Duration::from_nanos(start.parse()?);
                let interval = Duration::from_nanos(interval.parse()?);
                let mut planned = start;
                for id in ids {
                    let (document, drafts) = self.prepared.remove(*id).context("no such change")?;
                    clock::sleep_until(planned);
                    self.plane.patch(&document, drafts, &[]);
                    planned += interval;
                }
            }
            ["settle"] => {}
            _ => bail!("no such command"),
        }
        Ok("ok".to_owned())
    }
}

fn drafts(file: &Path) -> anyhow::Result<Vec<Draft>> {
    let type_urls = TYPE_URLS.map(TypeUrl::from);
    let resources = resources::read(file)?.into_iter();
    let drafts = resources.map(|(name, message)| {
        let name = Name::from(name);
        let type_url = type_urls.iter().find(|url| ***url == *message.type_url);
        let type_url = type_url.context("a type that the benchmark does not have")?;
        let is_cluster = **type_url == *TYPE_URLS[Kind::Cluster as usize];
        Ok(Draft {
            type_url: TypeUrl::clone(type_url),
            extras: Extras {
                endpoints: is_cluster.then(|| Name::clone(&name)),
                ..Extras::default()
            },
            name,
            value: Bytes::from(message.value),
        })
    });
    drafts.collect()
}
