//! `config_dir::watch` with real files: every way in which people and programs replace configuration.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use isthmus_xds::config_dir::watch::{DirectoryWatch, Reading, Timing, watch};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Long enough for a machine under load; a test that passes takes milliseconds.
const DEADLINE: Duration = Duration::from_mins(1);

/// Looking around would hide events that are missing.
const EVENTS_ONLY: Timing = Timing {
    quiet: Duration::from_millis(20),
    longest: Duration::from_secs(1),
    writer_patience: Duration::from_secs(30),
    writer_limit: Duration::from_secs(30),
    rescan: Duration::from_hours(1),
};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_not_read_while_a_writer_has_it_open() {
    let dir = Dir::with(&["a"]);
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    until(&watched, |reading| names(reading) == ["a"]).await;
    let seen = record(&watched);
    let path = dir.path.join("b.yaml");
    // Each document is well-formed, so nothing but the open file says that more is to come. The pauses are
    // what is tested: they are longer than the quiet that is waited for.
    let writer = thread::spawn(move || {
        let mut file = File::create(path).expect("a file");
        for name in ["b1", "b2", "b3", "b4"] {
            file.write_all(document(name).as_bytes())
                .expect("a file takes text");
            thread::sleep(EVENTS_ONLY.quiet * 4);
        }
    });
    until(&watched, |reading| {
        names(reading) == ["a", "b1", "b2", "b3", "b4"]
    })
    .await;
    writer.join().expect("the writer ends");
    let wanted = [vec!["a"], vec!["a", "b1", "b2", "b3", "b4"]];
    drop(watched);
    for reading in seen.await.expect("the recorder ends") {
        assert!(reading.errors.is_empty(), "{:?}", reading.errors);
        assert!(
            wanted.iter().any(|wanted| names(&reading) == *wanted),
            "{:?}",
            names(&reading)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_renamed_into_place_is_read() {
    let dir = Dir::with(&["a"]);
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    until(&watched, |reading| names(reading) == ["a"]).await;
    // As vim, sed -i and most libraries do it.
    for name in ["b", "c", "d"] {
        fs::write(dir.path.join(".a.yaml.new"), document(name)).expect("a file");
        fs::rename(dir.path.join(".a.yaml.new"), dir.path.join("a.yaml")).expect("a rename");
        until(&watched, |reading| names(reading) == [name]).await;
    }
    fs::rename(dir.path.join("a.yaml"), dir.path.join("a.yaml.off")).expect("a rename");
    let last = until(&watched, |reading| !reading.errors.is_empty()).await;
    assert_eq!(names(&last), ["d"], "the last good one stays in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_volume_is_read_by_generation() {
    let dir = Dir::with(&[]);
    let make = |generation: u32| {
        let name = format!("..generation-{generation}");
        fs::create_dir(dir.path.join(&name)).expect("a directory");
        for file in ["x", "y"] {
            let text = document(&format!("{file}{generation}"));
            fs::write(dir.path.join(&name).join(format!("{file}.yaml")), text).expect("a file");
        }
        // What the kubelet does: a link beside, renamed over.
        symlink(&name, dir.path.join("..data_tmp")).expect("a link");
        fs::rename(dir.path.join("..data_tmp"), dir.path.join("..data")).expect("a rename");
    };
    make(0);
    for file in ["x", "y"] {
        symlink(
            format!("..data/{file}.yaml"),
            dir.path.join(format!("{file}.yaml")),
        )
        .expect("a link");
    }
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    until(&watched, |reading| names(reading) == ["x0", "y0"]).await;
    let seen = record(&watched);
    for generation in 1..=10 {
        make(generation);
        fs::remove_dir_all(dir.path.join(format!("..generation-{}", generation - 1)))
            .expect("a directory to remove");
        let wanted = [format!("x{generation}"), format!("y{generation}")];
        until(&watched, |reading| names(reading) == wanted).await;
    }
    drop(watched);
    for reading in seen.await.expect("the recorder ends") {
        assert!(reading.errors.is_empty(), "{:?}", reading.errors);
        let [x, y] = &*names(&reading) else {
            panic!("two documents")
        };
        assert_eq!(x[1..], y[1..], "never two generations");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_may_go_and_come_back() {
    let dir = Dir::with(&[]);
    fs::remove_dir(&dir.path).expect("a directory to remove");
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    until(&watched, |reading| {
        reading.number > 0 && reading.config.is_none()
    })
    .await;
    for name in ["a", "b", "c"] {
        fs::create_dir(&dir.path).expect("a directory");
        fs::write(dir.path.join("f.yaml"), document(name)).expect("a file");
        until(&watched, |reading| {
            names(reading) == [name] && reading.errors.is_empty()
        })
        .await;
        // The watch is on the directory that is there.
        let second = format!("{name}-again");
        fs::write(dir.path.join("f.yaml"), document(&second)).expect("a file");
        until(&watched, |reading| names(reading) == [&*second]).await;
        fs::remove_dir_all(&dir.path).expect("a directory to remove");
        let last = until(&watched, |reading| !reading.errors.is_empty()).await;
        assert_eq!(names(&last), [second], "the last good one stays in force");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_may_be_named_relatively() {
    let dir = Dir::with(&["a"]);
    let here = env::current_dir().expect("a working directory");
    let mut relative: PathBuf = here.ancestors().skip(1).map(|_| "..").collect();
    relative.push(
        dir.path
            .strip_prefix("/")
            .expect("temporary directories are absolute"),
    );
    relative.push(".");
    let watched = watch(&relative, EVENTS_ONLY).expect("a watch");
    until(&watched, |reading| names(reading) == ["a"]).await;
    fs::write(dir.path.join("a.yaml"), document("b")).expect("a file");
    until(&watched, |reading| names(reading) == ["b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_may_be_replaced_by_another() {
    let dir = Dir::with(&["a"]);
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    until(&watched, |reading| names(reading) == ["a"]).await;
    let next = dir.parent.path().join("next");
    fs::create_dir(&next).expect("a directory");
    fs::write(next.join("b.yaml"), document("b")).expect("a file");
    fs::rename(&dir.path, dir.parent.path().join("previous")).expect("a rename");
    fs::rename(&next, &dir.path).expect("a rename");
    until(&watched, |reading| names(reading) == ["b"]).await;
    fs::write(dir.path.join("c.yaml"), document("c")).expect("a file");
    until(&watched, |reading| names(reading) == ["b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_event_is_found_by_looking() {
    let dir = Dir::with(&[]);
    let outside = dir.parent.path().join("outside.yaml");
    fs::write(&outside, document("a")).expect("a file");
    symlink(&outside, dir.path.join("a.yaml")).expect("a link");
    let timing = Timing {
        rescan: Duration::from_millis(50),
        ..EVENTS_ONLY
    };
    let watched = watch(&dir.path, timing).expect("a watch");
    until(&watched, |reading| names(reading) == ["a"]).await;
    fs::write(&outside, document("b")).expect("a file");
    until(&watched, |reading| names(reading) == ["b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_is_the_same_configuration() {
    let dir = Dir::with(&["a"]);
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    let first = until(&watched, |reading| names(reading) == ["a"]).await;
    fs::write(dir.path.join("a.yaml"), document("a")).expect("a file");
    let second = until(&watched, |reading| reading.number > first.number).await;
    let (Some(first), Some(second)) = (first.config, second.config) else {
        panic!("both are there")
    };
    assert!(Arc::ptr_eq(&first, &second));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_many_changes_is_read() {
    let dir = Dir::with(&["a"]);
    let watched = watch(&dir.path, EVENTS_ONLY).expect("a watch");
    // More events than are kept.
    for change in 0..3000 {
        let text = document(&format!("n{change}"));
        fs::write(dir.path.join(".next"), text).expect("a file");
        fs::rename(dir.path.join(".next"), dir.path.join("a.yaml")).expect("a rename");
    }
    let last = until(&watched, |reading| names(reading) == ["n2999"]).await;
    assert!(
        last.number < 300,
        "{} readings for 3000 changes",
        last.number
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_watch_ends_the_readings() {
    let dir = Dir::with(&["a"]);
    let watched = watch(&dir.path, Timing::default()).expect("a watch");
    let mut readings = watched.readings();
    until(&watched, |reading| reading.number > 0).await;
    readings.mark_unchanged();
    drop(watched);
    assert!(readings.changed().await.is_err());
}

struct Dir {
    parent: TempDir,
    path: PathBuf,
}

impl Dir {
    /// A directory with a document in a file of its own for each name.
    fn with(names: &[&str]) -> Self {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("conf");
        fs::create_dir(&path).expect("a directory");
        for name in names {
            let file = Path::new(name).with_extension("yaml");
            fs::write(path.join(file), document(name)).expect("a file");
        }
        Self { parent, path }
    }
}

fn document(name: &str) -> String {
    format!(
        "---\napiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\nmetadata: {{name: {name}}}\nspec:\n  \
         resources: []\n"
    )
}

fn names(reading: &Reading) -> Vec<String> {
    let documents = reading.config.iter().flat_map(|config| &config.documents);
    documents
        .map(|document| document.name.to_string())
        .collect()
}

async fn until(watched: &DirectoryWatch, is_it: impl Fn(&Reading) -> bool) -> Reading {
    let mut readings = watched.readings();
    let waited = tokio::time::timeout(DEADLINE, readings.wait_for(|reading| is_it(reading))).await;
    let Ok(ended) = waited else {
        panic!(
            "not within {DEADLINE:?}; last: {:#?}",
            watched.readings().borrow()
        );
    };
    ended.expect("the watch goes on").clone()
}

/// Collects the readings from here until the watch is dropped.
fn record(watched: &DirectoryWatch) -> JoinHandle<Vec<Reading>> {
    let mut readings = watched.readings();
    tokio::spawn(async move {
        let mut seen = vec![readings.borrow_and_update().clone()];
        while readings.changed().await.is_ok() {
            seen.push(readings.borrow_and_update().clone());
        }
        seen
    })
}
