//! A refusal is traced to the file and line of what was refused.

use crate::support::{Client, Running, clusters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_file_and_line_of_the_resource() {
    let running = Running::start(&clusters(&[("a", 1), ("b", 1)]), &[]).await;
    let none = running.answer(&["nacks"]).await;
    assert_eq!(none, "no client refused anything\n");
    let mut client = Client::connect(&running, "web").await;
    client.accept().await;
    running
        .push(&clusters(&[("a", 1), ("b", 2), ("c", 1)]), 2)
        .await;
    let response = client.next().await;
    let words =
        "Error adding/updating cluster(s) b: unknown thing { inline_string: \"TOP-SECRET\" }";
    client.nack(&response, words).await;
    running
        .wait_for("/nacks", |it| it.contains("\"web\""))
        .await;

    let list = running.answer(&["nacks"]).await;
    let wanted = [
        " b ",
        "a.yaml:9 (document 1, spec.resources[1])",
        "in force",
        "Error adding/updating cluster(s) b: unknown thing",
    ];
    for text in wanted {
        assert!(list.contains(text), "{text}: {list}");
    }
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(!list.contains("TOP-SECRET"), "{list}");
    let history = running.answer(&["history"]).await;
    assert!(history.contains("refused by 1 client"), "{history}");
    let dump = running.get("/config_dump?type=cds").await;
    assert!(dump.contains("\"origin\":\"a.yaml:9 "), "{dump}");

    running
        .push(&clusters(&[("a", 1), ("b", 3), ("c", 1)]), 3)
        .await;
    let list = running.answer(&["nacks", "-o", "json"]).await;
    assert!(list.contains("\"isInForce\": false"), "{list}");
}
