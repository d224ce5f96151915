//! Object stores on the network, through the crate `object_store`.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};

use super::http::{Connector, Fault};
use super::store::{Body, Content, Folder, LARGEST_FOLDER, Listing, ObjectInfo, Store};
use super::{Clock, Credentials, Place, Settings, TargetUrl};
use crate::error::{Error, Kind, Result, invalid, local};

/// An object store, and what all its keys begin with.
#[derive(Clone, Debug)]
pub(super) struct CloudStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// Largest file that is stored by one PUT, which has to be in memory as a whole. Larger ones come in parts.
const LARGEST_PUT: u64 = 32 << 20;

/// Bytes of a part: the largest file of a backup, at 16 TiB, has some 60 of them.
const PART: u64 = 16 << 20;

/// Opens the store of a URL that is one.
pub(super) fn open(
    url: &TargetUrl,
    credentials: &Credentials,
    settings: &Settings,
    clock: &Clock,
) -> Result<CloudStore> {
    let endpoint = endpoint(url, credentials);
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let pem = credentials.get("AWS_CERT").or_else(|| credentials.get("AZBLOB_CERT"));
    let connector = Connector::new(settings, pem, !plain, clock)?;
    let store = match &url.place {
        Place::S3 { bucket, region, .. } => open_s3(bucket, region.as_deref(), endpoint, credentials, connector),
        Place::Azure { container, suffix, .. } => {
            open_azure(container, suffix.as_deref(), endpoint, credentials, connector)
        }
        Place::Google { bucket, .. } => open_google(bucket, endpoint, credentials, connector),
        Place::Folder { .. } | Place::Mountable { .. } => return Err(invalid(format!("{url} is no object store"))),
    };
    // A builder's error may quote what it was given, keys too.
    let store = store.map_err(|_| invalid(format!("{url}: URL, endpoint and keys do not make a target")))?;
    let prefix = Path::parse(url.place.prefix()).map_err(|error| invalid(format!("{url}: {error}")))?;
    Ok(CloudStore { store, prefix })
}

/// The host that a target is at, if its name has to be resolved.
pub(super) fn host(url: &TargetUrl, credentials: &Credentials) -> Option<String> {
    let endpoint = endpoint(url, credentials).map(str::to_owned);
    let endpoint = endpoint.or_else(|| match &url.place {
        Place::S3 { bucket, region, .. } => {
            Some(format!("{bucket}.s3.{}.amazonaws.com", region.as_deref().unwrap_or(DEFAULT_REGION)))
        }
        Place::Azure { suffix, .. } => {
            let account = credentials.get("AZBLOB_ACCOUNT_NAME")?;
            Some(format!("{account}.blob.{}", suffix.as_deref().unwrap_or("core.windows.net")))
        }
        Place::Google { .. } => Some("storage.googleapis.com".to_owned()),
        Place::Folder { .. } | Place::Mountable { .. } => None,
    })?;
    let authority: http::uri::Uri = endpoint.parse().ok()?;
    let host = authority.host()?.trim_matches(['[', ']']);
    // An address needs no resolver.
    host.parse::<std::net::IpAddr>().is_err().then(|| host.to_owned())
}

fn endpoint<'a>(url: &TargetUrl, credentials: &'a Credentials) -> Option<&'a str> {
    let endpoint = match &url.place {
        Place::S3 { .. } => credentials.get("AWS_ENDPOINTS"),
        Place::Azure { .. } => credentials.get("AZBLOB_ENDPOINT"),
        Place::Google { .. } => credentials.get("GCS_ENDPOINT"),
        Place::Folder { .. } | Place::Mountable { .. } => None,
    };
    endpoint.map(|endpoint| endpoint.trim_end_matches('/'))
}

/// The region where a URL names none.
const DEFAULT_REGION: &str = "us-east-1";

/// Attempts are ours to count.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

type Built = object_store::Result<Arc<dyn ObjectStore>>;

fn open_s3(
    bucket: &str,
    region: Option<&str>,
    endpoint: Option<&str>,
    credentials: &Credentials,
    connector: Connector,
) -> Built {
    let virtual_hosted = credentials.get("VIRTUAL_HOSTED_STYLE") == Some("true");
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or(DEFAULT_REGION))
        .with_retry(no_retries())
        .with_disable_bulk_delete(true)
        .with_virtual_hosted_style_request(virtual_hosted || endpoint.is_none())
        .with_http_connector(connector);
    if let Some(endpoint) = endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
    }
    builder = match (credentials.get("AWS_ACCESS_KEY_ID"), credentials.get("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => builder.with_access_key_id(id).with_secret_access_key(secret),
        // Without keys nothing is signed: the client would look for keys in its surroundings.
        _ => builder.with_skip_signature(true),
    };
    if let Some(token) = credentials.get("AWS_SESSION_TOKEN") {
        builder = builder.with_token(token);
    }
    Ok(Arc::new(builder.build()?))
}

fn open_azure(
    container: &str,
    suffix: Option<&str>,
    endpoint: Option<&str>,
    credentials: &Credentials,
    connector: Connector,
) -> Built {
    let account = credentials.get("AZBLOB_ACCOUNT_NAME").unwrap_or_default();
    let endpoint = endpoint.map(str::to_owned);
    let endpoint = endpoint.or_else(|| suffix.map(|suffix| format!("https://{account}.blob.{suffix}")));
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_container_name(container)
        .with_retry(no_retries())
        .with_http_connector(connector);
    if let Some(endpoint) = endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
    }
    builder = match credentials.get("AZBLOB_ACCOUNT_KEY") {
        Some(key) => builder.with_access_key(key),
        None => builder.with_skip_signature(true),
    };
    Ok(Arc::new(builder.build()?))
}

fn open_google(bucket: &str, endpoint: Option<&str>, credentials: &Credentials, connector: Connector) -> Built {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_http_connector(connector);
    if let Some(endpoint) = endpoint {
        builder = builder.with_base_url(endpoint);
    }
    builder = match credentials.get("GCS_SERVICE_ACCOUNT_KEY") {
        Some(key) => builder.with_service_account_key(key),
        None => builder.with_skip_signature(true),
    };
    Ok(Arc::new(builder.build()?))
}

impl CloudStore {
    fn path(&self, key: &str) -> Result<Path> {
        let key = Path::parse(key).map_err(|error| invalid(format!("{key}: {error}")))?;
        Ok(self.prefix.parts().chain(key.parts()).collect())
    }

    /// The key of a path below the prefix.
    fn key(prefix: &Path, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(prefix)?.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }

    fn info(prefix: &Path, meta: &ObjectMeta) -> Option<ObjectInfo> {
        let key = Self::key(prefix, &meta.location)?;
        Some(ObjectInfo { key, size: meta.size, modified: SystemTime::from(meta.last_modified) })
    }
}

/// The kind of an error: the fault that it carries, if it carries one.
fn store_error(error: &object_store::Error, what: &str, key: &str) -> Error {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(fault) = cause.downcast_ref::<Fault>() {
            return Error::new(fault.kind, format!("{what} {key}: {}", fault.text));
        }
        source = cause.source();
    }
    let kind = match error {
        object_store::Error::NotFound { .. } => Kind::NotFound,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Kind::Auth,
        // What makes no sense as an answer comes from something that is not the store, or not well.
        _ => Kind::Server,
    };
    Error::new(kind, format!("{what} {key}: {error}"))
}

/// A listing that says "not found" found no bucket, or something that is no store: it says nothing about objects.
fn listing_error(error: &object_store::Error, folder: &str) -> Error {
    let error = store_error(error, "listing", folder);
    if error.kind() == Kind::NotFound { Error::new(Kind::Empty, error.reason()) } else { error }
}

/// The next bytes of a file, at most `most`.
fn read_part(mut file: std::fs::File, most: u64) -> std::io::Result<(std::fs::File, Bytes)> {
    use std::io::Read;
    let mut part = Vec::new();
    (&mut file).take(most).read_to_end(&mut part)?;
    Ok((file, part.into()))
}

/// A failure to write. "Not found" then means that there is no bucket, or no store.
fn writing_error(error: &object_store::Error, key: &str) -> Error {
    let error = store_error(error, "writing", key);
    if error.kind() == Kind::NotFound { Error::new(Kind::Empty, error.reason()) } else { error }
}

impl CloudStore {
    async fn put_bytes(&self, key: &str, path: &Path, bytes: Bytes) -> Result<()> {
        let put = self.store.put(path, bytes.into()).await;
        put.map(|_| ()).map_err(|error| writing_error(&error, key))
    }

    async fn put_file(&self, key: &str, path: &Path, source: &std::path::Path) -> Result<()> {
        let failed = || local(source.display());
        let opened = source.to_owned();
        let opened = off_thread(key, move || {
            let file = std::fs::File::open(opened)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        });
        let (file, length) = opened.await?.map_err(failed())?;
        if length > LARGEST_PUT {
            return self.put_parts(key, path, file, source).await;
        }
        let (_, bytes) = off_thread(key, move || read_part(file, LARGEST_PUT)).await?.map_err(failed())?;
        self.put_bytes(key, path, bytes).await
    }

    /// One part after the other: the object is there as a whole when all are, or not at all.
    async fn put_parts(&self, key: &str, path: &Path, mut file: std::fs::File, source: &std::path::Path) -> Result<()> {
        let failed = |error| writing_error(&error, key);
        let mut upload = self.store.put_multipart(path).await.map_err(failed)?;
        let stored = async {
            loop {
                let read = off_thread(key, move || read_part(file, PART)).await?;
                let (rest, part) = read.map_err(local(source.display()))?;
                if part.is_empty() {
                    return upload.complete().await.map(|_| ()).map_err(failed);
                }
                upload.put_part(part.into()).await.map_err(failed)?;
                file = rest;
            }
        };
        let stored = stored.await;
        if stored.is_err() {
            // Parts that cannot be removed are no object: stores drop them by a rule of the bucket's.
            let _ = upload.abort().await;
        }
        stored
    }
}

/// Does something that blocks.
async fn off_thread<T: Send + 'static>(key: &str, what: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(what).await;
    done.map_err(|_| Error::new(Kind::Interrupted, format!("writing {key}: stopped")))
}

#[async_trait]
impl Store for CloudStore {
    async fn get(&self, key: &str) -> Result<Body> {
        let shown = key.to_owned();
        let got = self.store.get(&self.path(key)?).await.map_err(|error| store_error(&error, "reading", key))?;
        Ok(got.into_stream().map_err(move |error| body_error(&error, &shown)).boxed())
    }

    async fn put(&self, key: &str, content: Content) -> Result<()> {
        let path = self.path(key)?;
        match content {
            Content::Bytes(bytes) => self.put_bytes(key, &path, bytes).await,
            Content::File(source) => self.put_file(key, &path, &source).await,
        }
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(key)?, bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(store_error(&error, "making", key)),
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.store.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(store_error(&error, "removing", key)),
        }
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        match self.store.head(&self.path(key)?).await {
            Ok(meta) => Ok(Self::info(&self.prefix, &meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(store_error(&error, "looking at", key)),
        }
    }

    async fn folder(&self, folder: &str) -> Result<Folder> {
        let path = self.path(folder)?;
        let listed = self.store.list_with_delimiter(Some(&path)).await;
        let listed = listed.map_err(|error| listing_error(&error, folder))?;
        if listed.objects.len() + listed.common_prefixes.len() > LARGEST_FOLDER {
            return Err(Error::new(Kind::Invalid, format!("listing {folder}: too many objects")));
        }
        let objects = listed.objects.iter().filter_map(|meta| Self::info(&self.prefix, meta)).collect();
        let folders = listed.common_prefixes.iter();
        let folders =
            folders.filter_map(|path| path.parts().next_back().map(|part| part.as_ref().to_owned())).collect();
        Ok(Folder { objects, folders })
    }

    fn list(&self, folder: &str) -> Listing {
        let path = match self.path(folder) {
            Ok(path) => path,
            Err(error) => return futures_util::stream::once(async move { Err(error) }).boxed(),
        };
        let (prefix, shown) = (self.prefix.clone(), folder.to_owned());
        let listed = self.store.list(Some(&path)).map_err(move |error| listing_error(&error, &shown));
        listed.try_filter_map(move |meta| std::future::ready(Ok(Self::info(&prefix, &meta)))).boxed()
    }
}

/// A body that fails was cut short, unless it says something else.
fn body_error(error: &object_store::Error, key: &str) -> Error {
    let error = store_error(error, "reading", key);
    if error.kind() == Kind::Server { Error::new(Kind::Interrupted, error.reason()) } else { error }
}
