//! The loop on real files and namespaces, with a datapath that only remembers.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use isthmus_accel_abi::program;
use isthmus_accel_core::{MapOp, State};
use isthmus_accel_datapath::{
    CounterRow, Datapath, DatapathError, HopRow, LatencyRow, MapUsage, PairRow, ParkedRow,
    ProgramRow, RetiredRow, VerdictRow, fake::FakeDatapath,
};
use isthmus_accelerator::{
    run::{Home, read_first, run},
    runtime_dir::RuntimeDir,
    status::Mode,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::netns::Netns;

/// A change takes 100 ms for the file to settle, and at worst a round of 5 s.
const DEADLINE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

#[tokio::test]
async fn follows_pods_that_come_change_and_go() {
    let node = Node::start(&[]).await;
    assert_eq!(node.datapath.loaded_pods(), 0);

    let early = Netns::add("early");
    early.give_addr("198.18.77.1/24");
    let late = format!("{}-late", early.name);
    node.write(&[&early.name, &late]);
    node.wait("the pod that is there", |state| state.pods.len() == 1)
        .await;

    let late = Netns::add("early-late");
    node.wait_roster("the other one has no address", "has no address yet")
        .await;
    late.give_addr("198.18.77.2/24");
    node.wait("the other one too", |state| state.pods.len() == 2)
        .await;

    early.give_addr("198.18.78.1/24");
    node.wait("its second address", |state| state.addrs.len() == 3)
        .await;

    let cookies: Vec<u64> = node.datapath.state().pods.into_keys().collect();
    let name = late.name.clone();
    drop(late);
    node.wait("the namespace is gone", |state| state.pods.len() == 1)
        .await;
    let again = Netns::add("early-late");
    assert_eq!(again.name, name);
    again.give_addr("198.18.77.2/24");
    node.wait("there is another one by its name", |state| {
        state.pods.len() == 2 && !state.pods.keys().eq(cookies.iter())
    })
    .await;

    node.write(&[]);
    node.wait("nothing is left", |state| *state == State::default())
        .await;
}

#[tokio::test]
async fn keeps_what_it_has_while_the_file_is_bad() {
    let pod = Netns::add("kept");
    pod.give_addr("198.18.77.1/24");
    let node = Node::start(&[&pod.name]).await;
    let state = node.datapath.state();
    assert_eq!(state.pods.len(), 1);

    fs::write(node.file(), "pods: [").expect("the directory is writable");
    pod.give_addr("198.18.78.1/24");
    node.wait("addresses are followed nevertheless", |state| {
        state.addrs.len() == 2
    })
    .await;
    fs::remove_file(node.file()).expect("it was there");
    pod.give_addr("198.18.79.1/24");
    node.wait("without a file too", |state| state.addrs.len() == 3)
        .await;
    assert_eq!(node.datapath.state().pods, state.pods);

    node.write(&[]);
    node.wait("a good file counts again", |state| {
        *state == State::default()
    })
    .await;
}

#[tokio::test]
async fn a_full_map_is_tried_again() {
    let pod = Netns::add("full");
    pod.give_addr("198.18.77.1/24");
    let node = Node::start(&[]).await;
    node.datapath.with(|fake| fake.is_next_op_refused = true);
    node.write(&[&pod.name]);
    node.wait("the pod is loaded", |state| state.pods.len() == 1)
        .await;
}

/// A directory with a FILE, and a loop that follows it until it is dropped.
struct Node {
    datapath: SharedFake,
    dir: TempDir,
    task: JoinHandle<()>,
}

impl Node {
    async fn start(pods: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let datapath = SharedFake::default();
        write(&dir.path().join("node.yaml"), pods);
        let file = read_first(dir.path().join("node.yaml"))
            .await
            .expect("the file is good");
        let pin_dir = PathBuf::from("/pins");
        let runtime_dir = RuntimeDir::new(dir.path(), &pin_dir);
        let home = Home {
            names: tokio::sync::watch::channel(Arc::default()).0,
            shadow: tokio::sync::watch::channel(None).1,
            mode: Mode::Sockmap,
            pin_dir,
            runtime_dir,
        };

        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let mut out = FirstLine(Some(ready));
        let shared = datapath.clone();
        let task = tokio::spawn(async move {
            run(shared, file, home, None, &mut out)
                .await
                .expect("it runs until it is stopped");
        });
        let line = is_ready.await.expect("it says when it is ready");
        let ready = format!(
            "ready: {} pods, {} programs, ",
            pods.len(),
            program::ALL.len()
        );
        assert!(line.starts_with(&ready), "{line}");
        Self {
            datapath,
            dir,
            task,
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("node.yaml")
    }

    fn write(&self, pods: &[&str]) {
        write(&self.file(), pods);
    }

    async fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        wait_until(what, || is_so(&self.datapath.state())).await;
    }

    async fn wait_roster(&self, what: &str, text: &str) {
        let roster = self.dir.path().join("pins.pods.json");
        wait_until(what, || {
            fs::read_to_string(&roster).is_ok_and(|json| json.contains(text))
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(POLL).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, poll).await.is_ok(),
        "not within {DEADLINE:?}: {what}"
    );
}

fn write(path: &Path, pods: &[&str]) {
    let pod = |name: &&str| {
        format!(
            "{{name: default/{name}, netns: {}}}",
            Netns::path_of(name).display()
        )
    };
    let pods: Vec<String> = pods.iter().map(pod).collect();
    let head = "apiVersion: isthmus.io/v1alpha1\nkind: NodeConfig\n";
    let draft = path.with_extension("draft");
    fs::write(&draft, format!("{head}pods: [{}]\n", pods.join(", ")))
        .expect("the directory is writable");
    fs::rename(&draft, path).expect("a rename");
}

/// Hands the first line that is written to whoever waits for it.
struct FirstLine(Option<tokio::sync::oneshot::Sender<String>>);

impl io::Write for FirstLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(ready) = self.0.take() {
            let _ = ready.send(String::from_utf8_lossy(bytes).into_owned());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A fake that the test and the loop share.
#[derive(Clone, Debug, Default)]
struct SharedFake(Arc<Mutex<FakeDatapath>>);

impl SharedFake {
    fn with<T>(&self, act: impl FnOnce(&mut FakeDatapath) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn state(&self) -> State {
        self.with(|fake| fake.state.clone())
    }

    fn loaded_pods(&self) -> usize {
        self.state().pods.len()
    }
}

impl Datapath for SharedFake {
    fn loaded(&self) -> Result<State, DatapathError> {
        self.with(|fake| fake.loaded())
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        self.with(|fake| fake.apply(op))
    }

    fn locate(&mut self, namespaces: BTreeMap<u64, PathBuf>) {
        self.with(|fake| fake.locate(namespaces));
    }

    fn find_listeners(&mut self) -> Result<(), DatapathError> {
        self.with(Datapath::find_listeners)
    }

    fn keep_ways_back(&mut self) -> Result<BTreeMap<u64, DatapathError>, DatapathError> {
        self.with(Datapath::keep_ways_back)
    }

    fn serves_virtual_machines(&self) -> bool {
        self.with(|fake| fake.serves_virtual_machines())
    }

    fn hop_stats(&self) -> Result<Vec<HopRow>, DatapathError> {
        self.with(|fake| fake.hop_stats())
    }

    fn parked(&self) -> Result<Vec<ParkedRow>, DatapathError> {
        self.with(|fake| fake.parked())
    }

    fn verdicts(&self) -> Result<Vec<VerdictRow>, DatapathError> {
        self.with(|fake| fake.verdicts())
    }

    fn latency(&self) -> Result<Vec<LatencyRow>, DatapathError> {
        self.with(|fake| fake.latency())
    }

    fn counters(&self) -> Result<Vec<CounterRow>, DatapathError> {
        self.with(|fake| fake.counters())
    }

    fn programs(&self) -> Result<Vec<ProgramRow>, DatapathError> {
        self.with(|fake| fake.programs())
    }

    fn pairs(&self, limit: usize) -> Result<Vec<PairRow>, DatapathError> {
        self.with(|fake| fake.pairs(limit))
    }

    fn map_usage(&self) -> Result<Vec<MapUsage>, DatapathError> {
        self.with(|fake| fake.map_usage())
    }

    fn retired(&self) -> Result<Vec<RetiredRow>, DatapathError> {
        self.with(|fake| fake.retired())
    }

    fn retire_others(&mut self) -> Result<Vec<RetiredRow>, DatapathError> {
        self.with(FakeDatapath::retire_others)
    }

    fn sweep(&mut self, older_than: Duration) -> Result<usize, DatapathError> {
        self.with(|fake| fake.sweep(older_than))
    }
}
