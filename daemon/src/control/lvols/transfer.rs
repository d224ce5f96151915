//! Whole lvols out of the node and into it: streams of checked chunks.
//!
//! ```text
//! export  reactor ──pieces──▶ chunks, checksums ──parts──▶ client
//! import  client ──parts──▶ checks ──pieces──▶ reactor; `whole` only after an end that agrees
//! ```
//! Each step waits for the next one, and none for ever: a client that does not go on for [`IDLE_LIMIT`] is cut off.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use lvol::{CreateLvol, LvolKind};
use proto::chunk::{Transfer, TransferError, chunks};
use proto::v1::export_lvol_response::Part as Exported;
use proto::v1::import_lvol_request::Part as Imported;
use proto::v1::{self, LvolEnd};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::codegen::tokio_stream::Stream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::describe::describe;
use super::{Found, Lvols, MOST_TRANSFERS, Wanted};
use crate::control::error::ControlError;
use crate::control::stores::OpenStore;
use crate::data::{DataPath, LvolChange, LvolPiece};

/// How long the other end may take for its next step.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Pieces that are on their way at one time.
const PIECES: usize = 2;

type Part = Result<v1::ExportLvolResponse, Status>;

/// The parts of an export as they come.
pub(crate) struct Parts(mpsc::Receiver<Part>);

impl Stream for Parts {
    type Item = Part;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Part>> {
        self.0.poll_recv(cx)
    }
}

/// Nobody takes the parts any more.
struct Gone;

impl Lvols {
    /// Begins to send an lvol. What goes wrong from here on ends the stream with its error.
    pub(crate) async fn export(&self, lvol: &str) -> Result<Parts, ControlError> {
        let Found { home, facts } = self.find(lvol).await?;
        if facts.owner.is_some() && facts.info.kind == LvolKind::Head {
            let text = format!("lvol `{lvol}` changes with its volume: take a snapshot of that and export it");
            return Err(ControlError::precondition("REPLICA_LVOL", text));
        }
        let permit = self.transfer()?;
        let exported = {
            let _lock = self.uuids.lock(facts.info.uuid).await;
            self.exported.begin(facts.info.uuid)
        };
        let (parts, taken) = mpsc::channel(PIECES);
        let first = Exported::Lvol(describe(&facts, self.stores.name(facts.store)));
        let (data, store, id) = (self.data.clone(), facts.store, facts.info.uuid);
        tokio::spawn(async move {
            export(&data, home, store, id, first, parts).await;
            drop((permit, exported));
        });
        Ok(Parts(taken))
    }

    /// Makes an lvol of what a client sends.
    pub(crate) async fn import(
        &self,
        mut parts: Streaming<v1::ImportLvolRequest>,
    ) -> Result<v1::ImportLvolResponse, ControlError> {
        let Some(Imported::Lvol(request)) = next(&mut parts).await? else {
            return Err(ControlError::invalid("lvol", "the first message says what to make"));
        };
        let wanted = Wanted::parse(&request)?;
        let store = self.store(&wanted.store).await?;
        let spec = self.begin(&store, &wanted).await?;
        let uuid = spec.uuid;
        let _one = self.imports.lock(uuid).await;
        let _permit = self.transfer()?;
        let written = self.fill(&store, spec, parts).await?;
        let lvol = self.look(store.home, store.uuid, uuid).await?;
        if !written && wanted.uuid.is_none() {
            let text = format!(
                "lvol `{}` is there already, and nobody knows whether it has this content: nothing was changed",
                wanted.name
            );
            return Err(ControlError::precondition("EXISTS", text).with("uuid", uuid));
        }
        Ok(v1::ImportLvolResponse { lvol: Some(lvol), existed: !written })
    }

    /// Sees to it that there is an lvol to fill, incomplete; or one that is complete already.
    async fn begin(&self, store: &OpenStore, wanted: &Wanted) -> Result<CreateLvol, ControlError> {
        let _lock = self.lock(&wanted.name, wanted.uuid).await;
        let (spec, existing) = self.plan(store, wanted).await?;
        if existing.is_none() {
            self.data.change_lvol(store.home, store.uuid, LvolChange::BeginImport(spec.clone())).await?;
        }
        Ok(spec)
    }

    /// False if the lvol was there and complete.
    async fn fill(
        &self,
        store: &OpenStore,
        spec: CreateLvol,
        parts: Streaming<v1::ImportLvolRequest>,
    ) -> Result<bool, ControlError> {
        let transfer = Transfer::new(spec.size, spec.block_size);
        let (pieces, taken) = mpsc::channel(PIECES);
        let (all, whole) = oneshot::channel();
        let mut import = pin!(self.data.import_lvol(store.home, store.uuid, spec, taken, whole));
        let fed = tokio::select! {
            // It failed, or nothing is to be done.
            ended = &mut import => return ended,
            fed = feed(parts, transfer, pieces) => fed,
        };
        match fed {
            Ok(()) => {
                // If nobody hears it the import has failed: its own error counts.
                let _ = all.send(());
                import.await
            }
            Err(error) => {
                drop(all);
                // Over when this returns, so that the same import can begin anew.
                let _ = import.await;
                Err(error)
            }
        }
    }

    fn transfer(&self) -> Result<OwnedSemaphorePermit, ControlError> {
        self.transfers.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{MOST_TRANSFERS} exports and imports are under way already; try again later");
            ControlError::unavailable("BUSY", text)
        })
    }
}

async fn export(data: &DataPath, home: usize, store: Uuid, id: Uuid, first: Exported, parts: mpsc::Sender<Part>) {
    let (pieces, taken) = mpsc::channel(PIECES);
    let sending = send_all(first, taken, &parts);
    let (sent, read) = tokio::join!(sending, data.export_lvol(home, store, id, pieces));
    let Ok(data_bytes) = sent else { return };
    let last = match read {
        Ok(()) => Ok(part(Exported::End(LvolEnd { data_bytes }))),
        Err(error) => Err(Status::from(error)),
    };
    // An error means that the client has gone.
    let _ = send(&parts, last).await;
}

/// Sends the pieces that come, and returns how many bytes they were.
async fn send_all(
    first: Exported,
    mut pieces: mpsc::Receiver<LvolPiece>,
    parts: &mpsc::Sender<Part>,
) -> Result<u64, Gone> {
    let mut bytes = 0;
    send(parts, Ok(part(first))).await?;
    while let Some(piece) = pieces.recv().await {
        for chunk in chunks(piece.offset, &piece.data) {
            bytes += chunk.data.len() as u64;
            send(parts, Ok(part(Exported::Chunk(chunk)))).await?;
        }
    }
    Ok(bytes)
}

async fn send(parts: &mpsc::Sender<Part>, part: Part) -> Result<(), Gone> {
    match tokio::time::timeout(IDLE_LIMIT, parts.send(part)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Gone),
    }
}

fn part(part: Exported) -> v1::ExportLvolResponse {
    v1::ExportLvolResponse { part: Some(part) }
}

/// Checks what comes and passes it on, to the end of the stream. Returns early, with no error, when nobody takes it any more.
async fn feed(
    mut parts: Streaming<v1::ImportLvolRequest>,
    mut transfer: Transfer,
    pieces: mpsc::Sender<LvolPiece>,
) -> Result<(), ControlError> {
    loop {
        match next(&mut parts).await? {
            Some(Imported::Chunk(chunk)) => {
                transfer.take(&chunk).map_err(transfer_error)?;
                let piece = LvolPiece { offset: chunk.offset, data: chunk.data };
                if pieces.send(piece).await.is_err() {
                    return Ok(());
                }
            }
            Some(Imported::End(end)) => return transfer.end(&end).map_err(transfer_error),
            Some(Imported::Lvol(_)) => return Err(ControlError::invalid("lvol", "only the first message has one")),
            None => return Err(ControlError::invalid("end", "the stream ended without it: the lvol is incomplete")),
        }
    }
}

/// The next message; none at the end of the stream.
async fn next(parts: &mut Streaming<v1::ImportLvolRequest>) -> Result<Option<Imported>, ControlError> {
    match tokio::time::timeout(IDLE_LIMIT, parts.message()).await {
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(v1::ImportLvolRequest { part: Some(part) }))) => Ok(Some(part)),
        Ok(Ok(Some(_))) => Err(ControlError::invalid("part", "an empty message")),
        Ok(Err(status)) => Err(ControlError::unavailable("INCOMPLETE", format!("the import was cut off: {status}"))),
        Err(_) => {
            let text = format!("nothing came for {} s: the import was cut off", IDLE_LIMIT.as_secs());
            Err(ControlError::unavailable("INCOMPLETE", text))
        }
    }
}

fn transfer_error(error: TransferError) -> ControlError {
    match error {
        error @ TransferError::Checksum { .. } => ControlError::checksum(error),
        error @ TransferError::Malformed(_) => ControlError::invalid("chunk", error),
    }
}
