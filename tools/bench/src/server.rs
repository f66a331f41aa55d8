//! Our server as a process that takes commands: the library as `isthmus-xds` runs it, with a
//! file of resources in place of the directory.
//!
//! Commands, one a line, each answered by a line: `load GROUP FILE`, `prepare ID GROUP FILE`,
//! `schedule START_NS INTERVAL_NS ID…` (applies each change at its planned time), `settle`. Of a
//! soak: `rotate START_NS INTERVAL_NS FIRST COUNT GROUPS STEP` (makes and applies changes of one
//! endpoint without anybody waiting; number N is of cluster STEP times N modulo GROUPS), `join`
//! (waits for it), `heap` (bytes that are allocated), `wakes` (streams woken so far, if counted).

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;
use isthmus_heap::Counts;
use isthmus_proto::pb::google::protobuf::Any;
use isthmus_xds::grpc::DiscoveryService;
use isthmus_xds::http2;
use isthmus_xds::plane::Plane;
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::{Commit, Document, Extras, Name, Source, TypeUrl};
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
        rotating: None,
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
    rotating: Option<JoinHandle<anyhow::Result<()>>>,
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
                    resources: read_drafts(Path::new(file))?,
                });
                self.plane.publish(self.documents.clone())?;
            }
            ["prepare", id, group, file] => {
                let change = (Name::from(group), read_drafts(Path::new(file))?);
                self.prepared.insert(id.to_owned(), change);
            }
            ["schedule", start, interval, ref ids @ ..] => {
                let start = Duration::from_nanos(start.parse()?);
                let interval = Duration::from_nanos(interval.parse()?);
                let mut planned = start;
                for id in ids {
                    let (document, drafts) = self.prepared.remove(*id).context("no such change")?;
                    clock::sleep_until(planned);
                    let commit = Commit::new(Source::CONFIG_DIR);
                    self.plane
                        .commit(commit.patch(document, drafts, Vec::new()))?;
                    planned += interval;
                }
            }
            ["settle"] => {}
            ["rotate", start, interval, first, count, groups, step] => {
                let rotation = Rotation {
                    start: Duration::from_nanos(start.parse()?),
                    interval: Duration::from_nanos(interval.parse()?),
                    first: first.parse()?,
                    count: count.parse()?,
                    groups: groups.parse()?,
                    step: step.parse()?,
                    document: self
                        .documents
                        .first()
                        .context("nothing is loaded")?
                        .name
                        .clone(),
                };
                let plane = Arc::clone(&self.plane);
                self.rotating = Some(std::thread::spawn(move || rotation.run(&plane)));
            }
            ["join"] => {
                if let Some(rotating) = self.rotating.take() {
                    rotating.join().ok().context("the rotation ended early")??;
                }
            }
            ["heap"] => return Ok(Counts::of_process().live_bytes().to_string()),
            ["wakes"] => return self.wakes(),
            _ => bail!("no such command"),
        }
        Ok("ok".to_owned())
    }

    fn wakes(&self) -> anyhow::Result<String> {
        let metrics = self.plane.metrics.render()?;
        let mut lines = metrics.lines();
        let count = lines.find_map(|line| line.strip_prefix("isthmus_xds_wakes_total "));
        Ok(count.unwrap_or("-").to_owned())
    }
}

/// Changes of one endpoint after the other.
struct Rotation {
    start: Duration,
    interval: Duration,
    first: u32,
    count: u32,
    groups: u32,
    step: usize,
    document: Name,
}

impl Rotation {
    fn run(&self, plane: &Plane) -> anyhow::Result<()> {
        for change in self.first..self.first + self.count {
            let cluster = (change % self.groups) as usize * self.step;
            let (name, message) = resources::one_endpoint(&self.document, cluster, change);
            clock::sleep_until(self.start + self.interval * (change - self.first));
            let drafts = drafts(vec![(name, message)])?;
            let commit = Commit::new(Source::CONFIG_DIR);
            plane.commit(commit.patch(Name::clone(&self.document), drafts, Vec::new()))?;
        }
        Ok(())
    }
}

fn read_drafts(file: &Path) -> anyhow::Result<Vec<Draft>> {
    drafts(resources::read(file)?)
}

fn drafts(resources: Vec<(String, Any)>) -> anyhow::Result<Vec<Draft>> {
    let type_urls = TYPE_URLS.map(TypeUrl::from);
    let drafts = resources.into_iter().map(|(name, message)| {
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
