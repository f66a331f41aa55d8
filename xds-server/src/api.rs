//! The programmatic API: documents set, patched and deleted over gRPC, and their way to the clients followed.
//!
//! It has listeners of its own, never those of discovery: a client of the fleet must not reach what rules the fleet.
//!
//! ```text
//!  caller ──access──▶ ResourceApi ──request──▶ Commit ──check──▶ Plane
//!            │                 └──convergence──────────────────────┘
//!       refused: PERMISSION_DENIED, a line in the log
//! ```
//!
//! Documents set here are in memory only.

mod access;
mod answers;
mod check;
mod convergence;
mod errors;
pub mod limits;
mod request;

use std::pin::Pin;
use std::sync::Arc;

use isthmus_proto::control::resource_service_server::{ResourceService, ResourceServiceServer};
use isthmus_proto::control::{
    CommitRequest, CommitResponse, ConvergenceEvent, DeleteDocumentRequest, GetDocumentRequest,
    GetDocumentResponse, ListDocumentsRequest, ListDocumentsResponse, PatchDocumentRequest,
    SetDocumentRequest, WatchConvergenceRequest,
};
use tokio::sync::{Semaphore, watch};
use tokio_stream::Stream;
use tonic::{Response, Status};
use tracing::info;

use crate::http2;
use crate::plane::Plane;
use crate::provenance::Origins;
use crate::transport::{ConnectedPeer, Incoming};
use convergence::Recent;
use request::Request;

pub use access::{Access, Guarded};
pub use errors::{BadRequest, FieldViolation, Refusal};

/// The service behind the API.
#[derive(Clone, Debug)]
pub struct ResourceApi {
    plane: Arc<Plane>,
    shutdown: watch::Receiver<bool>,
    // Commits take turns: each may hold as much memory as the largest request.
    turn: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    recent: Recent,
}

impl ResourceApi {
    /// Changes and shows what `plane` serves. Watches end when `shutdown` turns true.
    pub fn new(plane: Arc<Plane>, shutdown: watch::Receiver<bool>) -> Self {
        Self {
            plane,
            shutdown,
            turn: Arc::new(Semaphore::new(1)),
            watches: Arc::new(Semaphore::new(limits::MAX_WATCHES)),
            recent: Recent::default(),
        }
    }

    async fn put(
        &self,
        request: Request,
        peer: String,
    ) -> Result<Response<CommitResponse>, Status> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let plane = Arc::clone(&self.plane);
        let recent = self.recent.clone();
        // Checking and encoding thousands of resources takes a while: not on a thread that serves streams.
        let put = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            put(&plane, &recent, request, &peer)
        });
        let put = put
            .await
            .map_err(|_| Status::internal("the commit failed; nothing of it is in force"))?;
        Ok(Response::new(put?))
    }
}

fn put(
    plane: &Arc<Plane>,
    recent: &Recent,
    request: Request,
    peer: &str,
) -> Result<CommitResponse, Refusal> {
    let asked = request::read(request).map_err(Refusal::Invalid)?;
    let operations = asked.commit.operations.len();
    let places = asked.places;
    let answers = plane.convergence.answers();
    let origins = Origins::Caller(Arc::from(peer));
    let (published, warnings) =
        plane.commit_checked(asked.commit, &origins, |catalog, staged| {
            check::check(catalog, staged, &places)
        })?;
    if published.has_changes() {
        recent.keep(plane, published.generation, answers);
    }
    info!(
        generation = published.generation,
        operations,
        changed = published.resources.len(),
        peer,
        "a commit of the API is in force"
    );
    Ok(answers::of_commit(&published, warnings))
}

fn peer_of<T>(request: &tonic::Request<T>) -> String {
    let peer = request.extensions().get::<ConnectedPeer>();
    peer.map(|peer| match peer.identity() {
        Some(identity) => format!("{peer} ({identity})"),
        None => peer.to_string(),
    })
    .unwrap_or_default()
}

#[tonic::async_trait]
impl ResourceService for ResourceApi {
    type WatchConvergenceStream =
        Pin<Box<dyn Stream<Item = Result<ConvergenceEvent, Status>> + Send>>;

    async fn commit(
        &self,
        request: tonic::Request<CommitRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let peer = peer_of(&request);
        self.put(Request::Commit(request.into_inner()), peer).await
    }

    async fn set_document(
        &self,
        request: tonic::Request<SetDocumentRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let peer = peer_of(&request);
        self.put(Request::Set(request.into_inner()), peer).await
    }

    async fn patch_document(
        &self,
        request: tonic::Request<PatchDocumentRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let peer = peer_of(&request);
        self.put(Request::Patch(request.into_inner()), peer).await
    }

    async fn delete_document(
        &self,
        request: tonic::Request<DeleteDocumentRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let peer = peer_of(&request);
        self.put(Request::Delete(request.into_inner()), peer).await
    }

    async fn get_document(
        &self,
        request: tonic::Request<GetDocumentRequest>,
    ) -> Result<Response<GetDocumentResponse>, Status> {
        let name = request.into_inner().name;
        let document = self.plane.document(&name);
        let document =
            document.ok_or_else(|| Status::not_found(format!("there is no document {name:?}")))?;
        Ok(Response::new(answers::of_document(&name, &document)))
    }

    async fn list_documents(
        &self,
        request: tonic::Request<ListDocumentsRequest>,
    ) -> Result<Response<ListDocumentsResponse>, Status> {
        let request = request.into_inner();
        let page = answers::of_page(&self.plane, request.page_size, &request.page_token);
        Ok(Response::new(page))
    }

    async fn watch_convergence(
        &self,
        request: tonic::Request<WatchConvergenceRequest>,
    ) -> Result<Response<Self::WatchConvergenceStream>, Status> {
        let Ok(permit) = Arc::clone(&self.watches).try_acquire_owned() else {
            let most = limits::MAX_WATCHES;
            let message = format!("{most} generations are followed already; end a watch first");
            return Err(Status::resource_exhausted(message));
        };
        let generation = request.into_inner().generation;
        let shutdown = self.shutdown.clone();
        let events = convergence::follow(&self.plane, &self.recent, generation, shutdown, permit)?;
        Ok(Response::new(Box::pin(events)))
    }
}

/// Serves the API on its listeners until `shutdown` turns true and the calls under way have ended.
pub async fn serve(
    incoming: Incoming,
    api: ResourceApi,
    access: Access,
    mut shutdown: watch::Receiver<bool>,
) {
    let refused = api.plane.metrics.refused_connections();
    let service =
        ResourceServiceServer::new(api).max_decoding_message_size(limits::MAX_REQUEST_BYTES);
    http2::serve(
        Guarded::new(service, access, refused),
        incoming,
        async move {
            // Fails only if the sender is gone, and then it is time to stop as well.
            let _ = shutdown.wait_for(|is_stopped| *is_stopped).await;
        },
    )
    .await;
}
