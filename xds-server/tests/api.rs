//! The programmatic API of a running server, called over real sockets, and what its clients get of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "api/access.rs"]
mod access;
#[path = "api/support.rs"]
mod support;

use std::fs;

use isthmus_proto::control::changed_resource::Kind;
use isthmus_proto::control::client_outcome::Verdict;
use isthmus_proto::control::convergence_event::Event;
use isthmus_proto::control::operation::Change;
use isthmus_proto::control::{
    CommitRequest, DeleteDocumentRequest, DocumentPatch, GetDocumentRequest, ListDocumentsRequest,
    Operation, PatchDocumentRequest, ResourceRef, Selector, WatchConvergenceRequest,
};
use isthmus_proto::pb::google::rpc;
use isthmus_xds::api::BadRequest;
use isthmus_xds_core::type_rules::{CLUSTER, ENDPOINT};
use prost::Message;
use support::{Client, Running, cluster, document, json, names, set};
use tempfile::TempDir;
use tonic::{Code, Status};

const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

fn operation(change: Change) -> Operation {
    Operation {
        change: Some(change),
    }
}

fn commit(changes: Vec<Change>) -> CommitRequest {
    CommitRequest {
        operations: changes.into_iter().map(operation).collect(),
        if_generation: None,
    }
}

fn patch(name: &str, upserts: Vec<isthmus_proto::control::Resource>) -> DocumentPatch {
    DocumentPatch {
        name: name.to_owned(),
        upserts,
        removals: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_nothing_is_served_before_the_first_commit() {
    let running = Running::start().await;
    let refused = Client::open(&running, "n", &[CLUSTER]).await.err();
    assert_eq!(refused.unwrap().code(), Code::Unavailable);
    assert!(running.page("/readyz").await.contains("503"));

    let mut caller = running.caller().await;
    let wrong = set(document("d", vec![cluster("", "1s")]));
    caller.set_document(wrong).await.unwrap_err();
    assert!(running.page("/readyz").await.contains("503"));

    // That there is nothing is something to say.
    caller.commit(CommitRequest::default()).await.unwrap();
    running.wait_for_page("/readyz", "200").await;
    Client::open(&running, "n", &[CLUSTER])
        .await
        .map(drop)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_patched_and_deleted_reaches_the_clients() {
    let running = Running::start().await;
    let mut caller = running.caller().await;
    let content = || {
        set(document(
            "web",
            vec![cluster("a", "1s"), cluster("b", "1s")],
        ))
    };
    let first = caller.set_document(content()).await.unwrap().into_inner();
    assert_eq!((first.generation, first.changed_resources), (1, 2));
    let again = caller.set_document(content()).await.unwrap().into_inner();
    assert_eq!((again.generation, again.changed_resources), (1, 0));
    let mut client = Client::open(&running, "n", &[CLUSTER]).await.unwrap();
    assert_eq!(names(&client.accept().await), ["a", "b"]);

    let request = PatchDocumentRequest {
        patch: Some(DocumentPatch {
            removals: vec![ResourceRef {
                type_url: CLUSTER.to_owned(),
                name: "a".to_owned(),
            }],
            ..patch("web", vec![cluster("b", "2s")])
        }),
        if_generation: Some(1),
    };
    let patched = caller
        .patch_document(request.clone())
        .await
        .unwrap()
        .into_inner();
    let changes: Vec<(&str, Kind)> = patched
        .changes
        .iter()
        .map(|it| (&*it.name, it.kind()))
        .collect();
    assert_eq!(changes, [("a", Kind::Removed), ("b", Kind::Changed)]);
    let mut got = client.accept().await;
    let mut removed = got.removed_resources.clone();
    if removed.is_empty() {
        assert_eq!(names(&got), ["b"]);
        got = client.accept().await;
        removed = got.removed_resources.clone();
    }
    assert_eq!(removed, ["a"]);

    let late = caller.patch_document(request).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted);
    assert!(
        late.message().contains("generation 2 is in force"),
        "{late}"
    );

    let delete = DeleteDocumentRequest {
        name: "web".to_owned(),
        if_generation: None,
    };
    let deleted = caller
        .delete_document(delete.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((deleted.generation, deleted.changed_resources), (3, 1));
    assert_eq!(client.accept().await.removed_resources, ["b"]);
    let again = caller.delete_document(delete).await.unwrap().into_inner();
    assert_eq!(again.generation, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_in_force_whole_or_not_at_all() {
    let running = Running::start().await;
    let mut caller = running.caller().await;
    let wrong = commit(vec![
        Change::Set(document("one", vec![cluster("a", "1s")])),
        Change::Set(document("two", vec![cluster("b", "0s"), json("{}")])),
        Change::Patch(patch("", Vec::new())),
    ]);
    let refused: Status = caller.commit(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let lines: Vec<&str> = refused.message().lines().collect();
    assert_eq!(
        lines[0],
        "operations[1].set.resources[0].json.connect_timeout: must be greater than 0s"
    );
    assert!(
        lines[1].starts_with("operations[1].set.resources[1].json"),
        "{lines:?}"
    );
    assert_eq!(lines[2], "operations[2].patch.name: must not be empty");
    let details = rpc::Status::decode(refused.details()).unwrap();
    let details = BadRequest::decode(&*details.details[0].value).unwrap();
    assert_eq!(
        details.field_violations[0].field,
        "operations[1].set.resources[0].json.connect_timeout"
    );

    let half = commit(vec![
        Change::Set(document("one", vec![cluster("a", "1s")])),
        Change::Patch(patch("two", vec![cluster("b", "1s")])),
    ]);
    let refused = caller.commit(half).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let listed = caller
        .list_documents(ListDocumentsRequest::default())
        .await
        .unwrap();
    assert!(listed.into_inner().documents.is_empty());

    let whole = commit(vec![
        Change::Set(document("one", vec![cluster("a", "1s")])),
        Change::Set(document("two", vec![cluster("b", "1s")])),
        Change::Patch(patch("two", vec![cluster("c", "1s")])),
    ]);
    let whole = caller.commit(whole).await.unwrap().into_inner();
    assert_eq!((whole.generation, whole.changed_resources), (1, 3));
    let mut client = Client::open(&running, "n", &[CLUSTER]).await.unwrap();
    assert_eq!(names(&client.accept().await), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_checked_against_each_other() {
    let running = Running::start().await;
    let mut caller = running.caller().await;
    let listener = |name: &str| {
        json(&format!(
            r#"{{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "{name}",
            "address": {{"socketAddress": {{"address": "127.0.0.1", "portValue": 80}}}},
            "filterChains": [{{"filters": [{{"name": "tcp", "typedConfig": {{
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "statPrefix": "x", "cluster": "nowhere"}}}}]}}]}}"#
        ))
    };
    let first = caller
        .set_document(set(document("one", vec![listener("l")])))
        .await
        .unwrap();
    let warnings = first.into_inner().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("document.resources[0].json.filter_chains[0]"),
        "{warnings:?}"
    );
    assert!(
        warnings[0].contains(r#"no document gives a cluster "nowhere""#),
        "{warnings:?}"
    );

    let refused = caller
        .set_document(set(document("two", vec![listener("m")])))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("document.resources[0].json.address"),
        "{refused}"
    );
    assert!(
        refused
            .message()
            .contains(r#"listener "l" of document "one""#),
        "{refused}"
    );
    let refused = caller
        .set_document(set(document("two", vec![listener("l")])))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");

    // For other clients it is another's address.
    for id in ["x", "y"] {
        let mut moved = document(id, vec![listener("l")]);
        moved.selector = Some(Selector {
            id: Some(id.to_owned()),
            ..Selector::default()
        });
        let swap = commit(vec![Change::Delete("one".to_owned()), Change::Set(moved)]);
        caller.commit(swap).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_files_are_seen_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("config");
    fs::create_dir(&config).unwrap();
    let file = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: files}
spec:
  resources:
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, connectTimeout: 1s}
    - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: s
      tlsCertificate: {privateKey: {inlineString: TOP-SECRET-KEY}}
"#;
    fs::write(config.join("a.yaml"), file).unwrap();
    let path = config.to_str().unwrap().to_owned();
    let args = ["--config-dir", &path, "--api-listen", "127.0.0.1:0"];
    let running = Running::start_with(dir, &args).await;
    running
        .wait_for_page("/metrics", "isthmus_config_generation 1")
        .await;
    // What only the API has would look like removed.
    assert!(running.page("/readyz").await.contains("503"));

    let mut caller = running.caller().await;
    let mine = set(document("mine", vec![cluster("b", "1s")]));
    caller.set_document(mine).await.unwrap();
    running.wait_for_page("/readyz", "200").await;
    let mut client = Client::open(&running, "n", &[CLUSTER]).await.unwrap();
    assert_eq!(names(&client.accept().await), ["a", "b"]);

    for (name, resource) in [("files", "c"), ("other", "a")] {
        let clash = set(document(name, vec![cluster(resource, "1s")]));
        let refused = caller.set_document(clash).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        assert!(refused.message().contains("config_dir"), "{refused}");
    }
    let delete = DeleteDocumentRequest {
        name: "files".to_owned(),
        if_generation: None,
    };
    let refused = caller.delete_document(delete).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");

    let page = ListDocumentsRequest {
        page_size: 1,
        ..ListDocumentsRequest::default()
    };
    let first = caller
        .list_documents(page.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&*first.documents[0].name, &*first.documents[0].source),
        ("files", "config_dir")
    );
    let rest = ListDocumentsRequest {
        page_token: first.next_page_token,
        ..page
    };
    let rest = caller.list_documents(rest).await.unwrap().into_inner();
    assert_eq!(
        (&*rest.documents[0].name, &*rest.documents[0].source),
        ("mine", "api")
    );
    assert_eq!(rest.next_page_token, "");
    let shown = GetDocumentRequest {
        name: "files".to_owned(),
    };
    let shown = caller.get_document(shown).await.unwrap().into_inner();
    let text = format!("{shown:?}");
    assert!(
        text.contains("[redacted]") && !text.contains("TOP-SECRET-KEY"),
        "{text}"
    );

    // A reload replaces what files said, and nothing else.
    fs::write(config.join("a.yaml"), file.replace("name: a,", "name: c,")).unwrap();
    running
        .wait_for_page("/metrics", "isthmus_config_generation 3")
        .await;
    let listed = caller
        .list_documents(ListDocumentsRequest::default())
        .await
        .unwrap();
    assert_eq!(listed.into_inner().documents.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_followed_to_each_client() {
    let running = Running::start().await;
    let mut caller = running.caller().await;
    let content = vec![
        cluster("a", "1s"),
        json(&format!(
            r#"{{"@type": "{ASSIGNMENT}", "clusterName": "a"}}"#
        )),
    ];
    caller
        .set_document(set(document("web", content)))
        .await
        .unwrap();
    let mut willing = Client::open(&running, "willing", &[CLUSTER, ENDPOINT])
        .await
        .unwrap();
    let mut unwilling = Client::open(&running, "unwilling", &[CLUSTER])
        .await
        .unwrap();
    let mut unconcerned = Client::open(&running, "unconcerned", &[ENDPOINT])
        .await
        .unwrap();
    for client in [&mut willing, &mut unwilling, &mut unconcerned] {
        client.accept().await;
    }
    willing.accept().await;

    let change = PatchDocumentRequest {
        patch: Some(patch("web", vec![cluster("a", "2s")])),
        if_generation: None,
    };
    let generation = caller
        .patch_document(change)
        .await
        .unwrap()
        .into_inner()
        .generation;
    willing.accept().await;
    let watch = WatchConvergenceRequest { generation };
    let mut events = caller.watch_convergence(watch).await.unwrap().into_inner();
    let response = unwilling.next().await;
    unwilling
        .answer(&response, Some("no such thing as 2s"))
        .await;

    let mut outcomes = Vec::new();
    let mut totals = Vec::new();
    let all = async {
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                Event::Totals(it) => totals.push(it),
                Event::Client(it) => outcomes.push(it),
            }
        }
    };
    tokio::time::timeout(support::PATIENCE, all)
        .await
        .expect("the watch ends");
    let last = totals.last().unwrap();
    assert_eq!((last.generation, last.clients), (generation, 2), "{last:?}");
    assert_eq!(
        (last.accepted, last.refused, last.waiting),
        (1, 1, 0),
        "{last:?}"
    );
    assert!(!last.is_converged);
    let of = |node: &str| outcomes.iter().find(|it| it.node_id == node).unwrap();
    let (yes, no) = (of("willing"), of("unwilling"));
    assert_eq!(
        (yes.verdict(), &*yes.type_url),
        (Verdict::Accepted, CLUSTER)
    );
    assert_eq!(
        (no.verdict(), &*no.error),
        (Verdict::Refused, "no such thing as 2s")
    );
    for outcome in [yes, no] {
        let after = outcome.change_to_ack.as_ref().unwrap();
        assert!(after.seconds > 0 || after.nanos > 0, "{outcome:?}");
    }
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");

    let never = WatchConvergenceRequest { generation: 77 };
    let refused = caller.watch_convergence(never).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}
