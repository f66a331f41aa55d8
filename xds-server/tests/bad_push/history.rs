//! `isthmus-xds history` and `rollback` against a running server with a client.

use crate::support::{Client, Running, clusters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_is_listed_compared_and_put_in_force_again() {
    let running = Running::start(Some(&clusters(&[("a", 1), ("b", 1)])), &[]).await;
    let mut client = Client::connect(&running, "web").await;
    assert_eq!(client.accept().await, ["a", "b"]);
    running
        .push(&clusters(&[("a", 2), ("b", 1), ("c", 1)]), 2)
        .await;
    assert_eq!(client.accept().await, ["a", "c"]);
    running
        .wait_for("/history", |it| it.contains("\"converged\":1"))
        .await;

    let list = running.answer(&["history"]).await;
    let lines: Vec<&str> = list.lines().collect();
    assert!(
        lines[1].starts_with('2') && lines[1].contains("cds +1 ~1"),
        "{list}"
    );
    assert!(lines[1].contains("in force, converged 1 of 1"), "{list}");
    assert!(
        lines[2].starts_with('1') && lines[2].contains("cds +2"),
        "{list}"
    );

    let diff = running.answer(&["history", "diff", "1", "2"]).await;
    let row = |sign: &str, name: &str| {
        let mut lines = diff.lines();
        lines.any(|line| line.starts_with(sign) && line.contains(&format!(" {name} ")))
    };
    assert!(row("~ cds", "a") && row("+ cds", "c"), "{diff}");
    assert!(
        diff.contains("a.yaml:6 (document 1, spec.resources[0])"),
        "{diff}"
    );

    let dry = running.answer(&["rollback", "1", "--dry-run"]).await;
    assert!(
        dry.contains("- cds") && dry.ends_with("nothing was changed\n"),
        "{dry}"
    );
    let done = running.answer(&["rollback", "1"]).await;
    assert!(
        done.contains("generation 3 is in force, with the documents of 1"),
        "{done}"
    );
    let back = client.next().await;
    assert_eq!(back.resources.len(), 1, "a as it was");
    client.ack(&back).await;
    let removal = if back.removed_resources.is_empty() {
        client.next().await
    } else {
        back
    };
    assert_eq!(removal.removed_resources, ["c"]);
    client.ack(&removal).await;
    let metrics = running.get("/metrics").await;
    assert!(
        metrics.contains("isthmus_config_rollbacks_total 1\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_ends_with_new_content_and_not_with_the_same() {
    let bad = clusters(&[("a", 2)]);
    let running = Running::start(Some(&clusters(&[("a", 1)])), &[]).await;
    running.push(&bad, 2).await;
    running.answer(&["rollback", "1"]).await;
    let list = running.answer(&["history"]).await;
    assert!(list.contains("in force, pinned"), "{list}");

    // Two lines further down, but the same content.
    running.write(&format!("# a comment\n# and another\n{bad}"));
    let unchanged = "isthmus_config_reloads_total{result=\"unchanged\"} 1\n";
    running
        .wait_for("/metrics", |it| it.contains(unchanged))
        .await;
    let metrics = running.get("/metrics").await;
    assert!(
        metrics.contains("isthmus_config_generation 3\n"),
        "{metrics}"
    );

    running.push(&clusters(&[("a", 3)]), 4).await;
    let list = running.answer(&["history"]).await;
    assert!(!list.contains("pinned"), "{list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_rollback_gives_back_what_it_displaced() {
    let running = Running::start(Some(&clusters(&[("a", 1)])), &[]).await;
    running.push(&clusters(&[("a", 2)]), 2).await;
    running.push(&clusters(&[("a", 3)]), 3).await;
    running.answer(&["rollback", "2"]).await;
    running.answer(&["rollback", "1"]).await;
    let released = running.answer(&["rollback", "--release"]).await;
    assert!(
        released.starts_with("generation 6 is in force"),
        "{released}"
    );
    let diff = running.answer(&["history", "diff", "3", "6"]).await;
    assert_eq!(diff, "nothing differs\n");

    let cases = [
        (&["rollback", "--release"][..], "no rollback is in force"),
        (
            &["rollback", "6"][..],
            "what generation 6 has is in force already",
        ),
        (&["rollback", "99"][..], "generation 99 is not kept"),
        (
            &["history", "diff", "0", "1"][..],
            "generation 0 is not kept",
        ),
    ];
    for (arguments, wanted) in cases {
        let output = running.command(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(wanted), "{arguments:?}: {error}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_rolls_nothing_back() {
    let running = Running::start(Some(&clusters(&[("a", 1)])), &[]).await;
    running.push(&clusters(&[("a", 2)]), 2).await;
    let path = "/rollback?generation=1";
    let cases = [
        ("GET", "x-isthmus-change: 1\r\n", "405"),
        ("POST", "", "403"),
        (
            "POST",
            "x-isthmus-change: 1\r\nOrigin: http://evil\r\n",
            "403",
        ),
    ];
    for (method, headers, status) in cases {
        let answer = running.exchange(method, path, headers).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{method} {headers}: {answer}"
        );
    }
    let metrics = running.get("/metrics").await;
    assert!(
        metrics.contains("isthmus_config_generation 2\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_never_shows_a_secret() {
    let document = |key: &str| {
        format!(
            "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\nmetadata: {{name: edge}}\nspec:\n  resources:\n    \
             - \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n      name: cert\n      \
             tlsCertificate: {{privateKey: {{inlineString: {key}}}}}\n"
        )
    };
    let running = Running::start(Some(&document("TOP-SECRET-1")), &[]).await;
    running.push(&document("TOP-SECRET-2"), 2).await;
    let shown = [
        running.get("/history").await,
        running.get("/history/diff?from=1&to=2").await,
        running.answer(&["rollback", "1", "--dry-run"]).await,
    ];
    for text in shown {
        assert!(!text.contains("TOP-SECRET"), "{text}");
    }
}
