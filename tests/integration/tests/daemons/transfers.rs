//! Exports and imports of single lvols: equal with their holes, and nothing half done that looks whole.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{House, MIB, PATIENCE, program, said};
use proto::chunk::{MAX_CHUNK, chunks};
use proto::v1::export_lvol_response::Part as Exported;
use proto::v1::import_lvol_request::Part;
use proto::v1::{
    CreateLvolRequest, DeleteLvolRequest, ExportLvolRequest, ImportLvolRequest, ImportLvolResponse, Lvol, LvolChunk,
    LvolEnd, LvolState, RevertLvolRequest,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::{self, wrappers::ReceiverStream};
use tonic::{Code, Response, Status};

const SIZE: u64 = 64 * MIB;

fn wanted(name: &str) -> Part {
    Part::Lvol(CreateLvolRequest {
        name: name.to_owned(),
        store: "main".to_owned(),
        size_bytes: SIZE,
        ..CreateLvolRequest::default()
    })
}

fn end(data_bytes: u64) -> Part {
    Part::End(LvolEnd { data_bytes })
}

fn message(part: Part) -> ImportLvolRequest {
    ImportLvolRequest { part: Some(part) }
}

async fn import(client: &Client, parts: Vec<Part>) -> Result<ImportLvolResponse, Status> {
    let messages: Vec<_> = parts.into_iter().map(message).collect();
    Ok(client.transfers().import(tokio_stream::iter(messages)).await?.into_inner())
}

/// A sparse file of some data: at its start, across chunks, single bytes in the middle of nowhere, and a tail.
fn sparse_file(house: &House, name: &str, length: u64) -> anyhow::Result<PathBuf> {
    let path = house.folder().join(name);
    let file = File::create_new(&path)?;
    file.set_len(length)?;
    let data: Vec<u8> = (0..3 * MIB as usize).map(|at| (at / 7 % 255) as u8 + 1).collect();
    file.write_all_at(&data[..5000], 0)?;
    file.write_all_at(&data, 7 * MIB + 12288)?;
    file.write_all_at(&[9], 33 * MIB + 77)?;
    // Zeroes that the file holds as data.
    file.write_all_at(&vec![0; MIB as usize], 40 * MIB)?;
    file.write_all_at(&data[..600], length - 600)?;
    Ok(path)
}

fn json(house: &House, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
    let output = house.ashlar(0, &[&["lvol"], arguments, &["-o", "json"]].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {}", said(&output)))
}

#[tokio::test]
async fn what_was_imported_is_exported_with_its_holes() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    house.create_store(0, "second", 256 * MIB).await?;
    let source = sparse_file(&house, "source", SIZE)?;
    let text = |path: &PathBuf| path.display().to_string();
    let (copy, again) = (house.folder().join("copy"), house.folder().join("again"));
    json(&house, &["import", &text(&source), "v", "--store", "main"])?;
    // 5000 bytes, 3 MiB, one byte, 600 bytes: the rest takes nothing.
    let blocks = 2 + 768 + 1 + 1;
    let clusters = 1 + 49 + 1 + 1;
    let v = json(&house, &["get", "v"])?;
    assert_eq!((&v["size_bytes"], &v["used_bytes"]), (&SIZE.into(), &(clusters * 65536).into()));
    assert_eq!(v["usage"]["referenced_bytes"], blocks * 4096);
    let exported = json(&house, &["export", "v", &text(&copy)])?;
    assert_eq!(exported["data_bytes"], blocks * 4096);
    let content = fs::read(&source)?;
    assert!(fs::read(&copy)? == content, "the copy differs");
    ensure!(fs::metadata(&copy)?.blocks() * 512 < 4 * MIB, "the copy has no holes");
    assert!(house.exported("v")? == content, "on standard output");

    // Once more around, through a snapshot, into another store, with blocks of 512 bytes, after a restart.
    json(&house, &["snapshot", "v", "cut"])?;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    json(&house, &["export", "cut", &text(&again)])?;
    let import = ["import", &text(&again), "w", "--store", "second", "--block-size", "512"];
    assert_eq!(json(&house, &import)?["existed"], false);
    let w = json(&house, &["get", "w"])?;
    assert_eq!((&w["used_bytes"], &w["block_size_bytes"]), (&v["used_bytes"], &512.into()));
    assert!(house.exported("w")? == content);

    // What is there is not written over: neither a file nor an lvol.
    let output = house.ashlar(0, &["lvol", "export", "v", &text(&copy)])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("exists already"), "{}", said(&output));
    let output =
        house.ashlar(0, &["lvol", "import", &text(&source), "w", "--store", "second", "--block-size", "512"])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("there already"), "{}", said(&output));
    let left: Vec<_> = fs::read_dir(house.folder())?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().starts_with(".ashlar")), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn a_file_of_any_length_becomes_whole_blocks() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let source = sparse_file(&house, "source", SIZE - 1000)?.display().to_string();
    let uuid = "00000000-0000-4000-8000-000000000001";
    let import = ["import", &source, "v", "--store", "main", "--uuid", uuid];
    assert_eq!(json(&house, &import)?["lvol"]["size_bytes"], SIZE);
    let mut content = fs::read(&source)?;
    content.resize(SIZE as usize, 0);
    assert!(house.exported("v")? == content);
    // The same identity is the same import: it was done.
    assert_eq!(json(&house, &import)?["existed"], true, "I30");
    json(&house, &["import", &source, "larger", "--store", "main", "--size", "1GiB"])?;
    assert!(house.exported("larger")?[..SIZE as usize] == content[..]);
    let output = house.ashlar(0, &["lvol", "import", &source, "smaller", "--store", "main", "--size", "1MiB"])?;
    ensure!(said(&output).contains("more than the 1048576"), "{}", said(&output));
    let output = house.ashlar(0, &["lvol", "import", "/no/such/file", "none", "--store", "main"])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("/no/such/file"), "{}", said(&output));
    // Nothing at all is fine too, but an lvol has at least a block.
    File::create_new(house.folder().join("empty"))?;
    let empty = house.folder().join("empty").display().to_string();
    let output = house.ashlar(0, &["lvol", "import", &empty, "empty", "--store", "main"])?;
    ensure!(said(&output).contains("size_bytes"), "{}", said(&output));
    assert_eq!(house.lvols().await?.len(), 2);
    Ok(())
}

/// The client of an import that is under way.
struct Importing {
    call: JoinHandle<Result<Response<ImportLvolResponse>, Status>>,
    parts: mpsc::Sender<ImportLvolRequest>,
}

/// An import that has begun and written something.
async fn begun(house: &House, name: &str) -> anyhow::Result<(Lvol, Importing)> {
    let (parts, taken) = mpsc::channel(4);
    let client = house.client(0).await?;
    let call = tokio::spawn(async move { client.transfers().import(ReceiverStream::new(taken)).await });
    parts.send(message(wanted(name))).await?;
    parts.send(message(Part::Chunk(LvolChunk::new(MIB, vec![7; MAX_CHUNK])))).await?;
    let written = |lvol: Option<&Lvol>| lvol.is_some_and(|lvol| lvol.used_bytes > 0);
    let lvol = house.wait_for_lvol(name, written).await?.context("it is there")?;
    Ok((lvol, Importing { call, parts }))
}

/// The same, cut off: the client is gone, its connection with it.
async fn cut_off(house: &House, name: &str) -> anyhow::Result<Lvol> {
    let (lvol, Importing { call, parts }) = begun(house, name).await?;
    call.abort();
    drop(parts);
    noticed(house, name).await?;
    Ok(lvol)
}

/// Waits until the daemon has noticed that the client of an import is gone: until then the lvol is in use.
async fn noticed(house: &House, name: &str) -> anyhow::Result<()> {
    let (client, limit) = (house.client(0).await?, std::time::Instant::now() + PATIENCE);
    loop {
        let request = ExportLvolRequest { lvol: name.to_owned() };
        let mut export = answer(client.transfers().export(request).await)?;
        export.message().await?;
        let status = export.message().await.err().context("it is exported, whole or not")?;
        match proto::error::info(&status).map(|info| info.reason).as_deref() {
            Some("INCOMPLETE") => return Ok(()),
            Some("IN_USE") if std::time::Instant::now() < limit => {}
            _ => anyhow::bail!("{status}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Each way to use an lvol is refused as long as its import did not end.
fn unusable(house: &House, name: &str, size: &str) -> anyhow::Result<()> {
    let ways: [&[&str]; 4] = [
        &["export", name, "-"],
        &["snapshot", name, "cut"],
        &["grow", name, "--size", "1GiB"],
        &["create", name, "--store", "main", "--size", size],
    ];
    for way in ways {
        let output = house.ashlar(0, &[&["lvol"], way].concat())?;
        let text = said(&output);
        ensure!(output.status.code() == Some(1) && text.contains("import did not end"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn an_import_that_is_cut_off_leaves_nothing_usable_and_begins_anew() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let cut = cut_off(&house, "v").await?;
    assert_eq!(cut.state(), LvolState::Incomplete);
    unusable(&house, "v", "64MiB")?;
    // Also after a kill of the daemon.
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    assert_eq!(
        house.wait_for_lvol("v", |lvol| lvol.is_some()).await?.map(|lvol| lvol.state()),
        Some(LvolState::Incomplete)
    );
    unusable(&house, "v", "64MiB")?;
    // The same again is the same lvol, without what the first one wrote.
    let client = house.client(0).await?;
    let data = LvolChunk::new(0, vec![1; 4096]);
    let imported = import(&client, vec![wanted("v"), Part::Chunk(data), end(4096)]).await?;
    let lvol = imported.lvol.context("an lvol")?;
    assert_eq!((&lvol.uuid, lvol.state(), imported.existed), (&cut.uuid, LvolState::Ready, false));
    let mut content = vec![0; SIZE as usize];
    content[..4096].fill(1);
    assert!(house.exported("v")? == content, "something of the first import is there");

    // The daemon killed in the middle of one, which can be deleted instead.
    let (_, importing) = begun(&house, "w").await?;
    house.cluster.node(0).kill()?;
    importing.call.await?.expect_err("nobody answers");
    house.cluster.node(0).start().await?;
    house.wait_for_lvol("w", |lvol| lvol.is_some_and(|lvol| lvol.state() == LvolState::Incomplete)).await?;
    unusable(&house, "w", "64MiB")?;
    let client = house.client(0).await?;
    let request = DeleteLvolRequest { lvol: "w".to_owned(), ..DeleteLvolRequest::default() };
    answer(client.lvols().delete(request).await)?;
    assert_eq!(house.lvols().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_killed_in_the_middle_of_an_import_leaves_nothing_usable() -> anyhow::Result<()> {
    let house = House::open(&["a"], 1024 * MIB).await?;
    let path = house.folder().join("source");
    let file = File::create_new(&path)?;
    for at in 0..256 {
        file.write_all_at(&vec![(at % 255) as u8 + 1; MIB as usize], at * MIB)?;
    }
    let server = house.cluster.nodes()[0].server();
    let mut child = Command::new(program("ashlar")?)
        .args(["--server", &server, "lvol", "import", &path.display().to_string(), "v", "--store", "main"])
        .stdout(Stdio::null())
        .spawn()?;
    let begun = |lvol: Option<&Lvol>| lvol.is_some_and(|lvol| lvol.used_bytes > 0);
    let found = house.wait_for_lvol("v", begun).await;
    child.kill()?;
    child.wait()?;
    assert_eq!(found?.map(|lvol| lvol.state()), Some(LvolState::Incomplete));
    noticed(&house, "v").await?;
    unusable(&house, "v", "256MiB")?;
    let left = house.lvol("v").await?;
    ensure!(left.state() == LvolState::Incomplete && left.used_bytes < 256 * MIB, "{left:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_damaged_or_missing_on_the_way_is_refused() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let client = house.client(0).await?;
    let good = || Part::Chunk(LvolChunk::new(MIB, vec![7; 8192]));
    let at = |offset, length| Part::Chunk(LvolChunk::new(offset, vec![7; length]));
    let flipped = {
        let mut chunk = LvolChunk::new(2 * MIB, vec![7; 8192]);
        chunk.data[5000] ^= 1;
        Part::Chunk(chunk)
    };
    let wrong = [
        ("damaged", vec![good(), flipped, end(16384)], Code::DataLoss),
        ("twice", vec![good(), good(), end(16384)], Code::InvalidArgument),
        ("backwards", vec![good(), at(0, 4096), end(12288)], Code::InvalidArgument),
        ("no whole blocks", vec![good(), at(2 * MIB, 512), end(8704)], Code::InvalidArgument),
        ("beyond the end", vec![good(), at(SIZE - 4096, 8192), end(16384)], Code::InvalidArgument),
        ("too long", vec![good(), at(2 * MIB, MAX_CHUNK + 4096), end(0)], Code::InvalidArgument),
        ("one is missing", vec![good(), end(16384)], Code::InvalidArgument),
        ("the end is missing", vec![good()], Code::InvalidArgument),
        ("anew", vec![good(), wanted("w")], Code::InvalidArgument),
    ];
    for (what, rest, code) in wrong {
        let parts = std::iter::once(wanted("v")).chain(rest).collect();
        let status = import(&client, parts).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert_eq!(house.lvol("v").await?.state(), LvolState::Incomplete, "{what}");
    }
    for parts in [vec![], vec![good()], vec![end(0)]] {
        let status = import(&client, parts).await.expect_err("nothing says what to make");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    // After all that, the right thing.
    let data = vec![5; 3 * MIB as usize];
    let rest = chunks(4096, &data).map(Part::Chunk);
    let parts = std::iter::once(wanted("v")).chain(rest).chain([end(3 * MIB)]).collect();
    import(&client, parts).await?;
    assert!(house.exported("v")?[4096..][..data.len()] == data);
    Ok(())
}

#[tokio::test]
async fn an_import_beyond_the_space_of_the_store_is_refused_and_harms_nobody() -> anyhow::Result<()> {
    let house = House::open(&["a"], 64 * MIB).await?;
    let client = house.client(0).await?;
    import(&client, vec![wanted("v"), Part::Chunk(LvolChunk::new(0, vec![1; 4096])), end(4096)]).await?;
    let data = vec![3; SIZE as usize];
    let rest = chunks(0, &data).map(Part::Chunk);
    let parts = std::iter::once(wanted("w")).chain(rest).chain([end(SIZE)]).collect();
    let status = import(&client, parts).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted, "I32: {status}");
    assert_eq!(house.lvol("w").await?.state(), LvolState::Incomplete);
    assert!(house.exported("v")?[..4096].iter().all(|byte| *byte == 1));
    let request = DeleteLvolRequest { lvol: "w".to_owned(), ..DeleteLvolRequest::default() };
    answer(client.lvols().delete(request).await)?;
    import(&client, vec![wanted("x"), Part::Chunk(LvolChunk::new(0, vec![1; 1 << 20])), end(1 << 20)]).await?;
    Ok(())
}

#[tokio::test]
async fn a_head_that_is_exported_is_not_taken_back_meanwhile() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let client = house.client(0).await?;
    let data = vec![3; 32 * MIB as usize];
    let rest = chunks(0, &data).map(Part::Chunk);
    let parts = std::iter::once(wanted("v")).chain(rest).chain([end(32 * MIB)]).collect();
    import(&client, parts).await?;
    json(&house, &["snapshot", "v", "cut"])?;
    let revert = || RevertLvolRequest { lvol: "v".to_owned(), snapshot: "cut".to_owned() };
    // A client that does not read on: more is on its way than the connection takes in.
    let mut export = answer(client.transfers().export(ExportLvolRequest { lvol: "v".to_owned() }).await)?;
    let first = export.message().await?;
    ensure!(matches!(first.and_then(|message| message.part), Some(Exported::Lvol(_))));
    let status = client.lvols().revert(revert()).await.expect_err("it is exported");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let mut bytes = 0;
    while let Some(message) = export.message().await? {
        match message.part {
            Some(Exported::Chunk(chunk)) => bytes += chunk.data.len() as u64,
            Some(Exported::End(end)) => assert_eq!((bytes, end.data_bytes), (32 * MIB, 32 * MIB)),
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert_eq!(bytes, 32 * MIB);
    let limit = std::time::Instant::now() + PATIENCE;
    while client.lvols().revert(revert()).await.is_err() {
        ensure!(std::time::Instant::now() < limit, "it can be taken back again");
    }
    Ok(())
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_an_export_leaves_no_file_that_looks_whole() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let source = house.folder().join("source");
    let file = File::create_new(&source)?;
    for at in 0..256 {
        file.write_all_at(&vec![(at % 255) as u8 + 1; MIB as usize], at * MIB)?;
    }
    json(&house, &["import", &source.display().to_string(), "v", "--store", "main"])?;
    let (server, folder) = (house.cluster.nodes()[0].server(), house.folder().join("exports"));
    fs::create_dir(&folder)?;
    let left = || -> anyhow::Result<usize> { Ok(fs::read_dir(&folder)?.count()) };
    let mut child = Command::new(program("ashlar")?)
        .args(["--server", &server, "lvol", "export", "v", &folder.join("copy").display().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    while left()? == 0 && child.try_wait()?.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    house.cluster.node(0).kill()?;
    let output = child.wait_with_output()?;
    assert_eq!((output.status.code(), left()?), (Some(1), 0), "{}", said(&output));
    house.cluster.node(0).start().await?;
    house.wait_for_lvol("v", |lvol| lvol.is_some()).await?;
    assert!(house.exported("v")? == fs::read(&source)?);
    Ok(())
}

#[tokio::test]
async fn transfers_are_bounded_and_those_that_are_given_up_make_room() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let client = house.client(0).await?;
    let data = vec![3; 16 * MIB as usize];
    let rest = chunks(0, &data).map(Part::Chunk);
    let parts = std::iter::once(wanted("v")).chain(rest).chain([end(16 * MIB)]).collect();
    import(&client, parts).await?;
    // A head is exported once at a time, a snapshot as often as there is room.
    json(&house, &["snapshot", "v", "cut"])?;
    let request = || ExportLvolRequest { lvol: "cut".to_owned() };
    // More rounds than there is room for at one time, and nobody reads on.
    for _ in 0..3 {
        let mut open = Vec::new();
        let refused = loop {
            let connection = house.client(0).await?;
            match connection.transfers().export(request()).await {
                Ok(export) => open.push((connection, export)),
                Err(status) => break status,
            }
            ensure!(open.len() < 100, "no bound");
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert_eq!(proto::error::info(&refused).map(|info| info.reason).as_deref(), Some("BUSY"));
        let import = import(&client, vec![wanted("w"), end(0)]).await.expect_err("no room for it either");
        assert_eq!(import.code(), Code::Unavailable, "{import}");
        assert_eq!(open.len(), 8);
        drop(open);
        // I40: whoever gave up holds nothing.
        let limit = std::time::Instant::now() + PATIENCE;
        while client.transfers().export(request()).await.is_err() {
            ensure!(std::time::Instant::now() < limit, "the room does not come back");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    assert!(house.exported("v")?[..data.len()] == data);
    Ok(())
}
