//! Pushes, from the operator's side: names of all files, then the contents that the node lacks, then the push itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream;
use ppsw_proto::control::{self as pb, activate_reply::Result as Done, admin_client::AdminClient};
use tonic::{Status, transport::Channel};

use crate::{limits, versions::BlobHash};

/// What to push: contents by their path below the directory.
#[derive(Clone, Debug, Default)]
pub struct NewVersion {
    pub files: BTreeMap<String, Bytes>,
    /// The person behind it; may be empty.
    pub author: String,
    pub reason: String,
    /// Overrule what may be overruled.
    pub force: bool,
}

/// What came of it, and how much was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    pub done: Done,
    pub sent_files: usize,
    pub sent_bytes: u64,
}

/// Makes the files a version, and active.
///
/// # Errors
/// What the node answered.
pub async fn push(admin: &mut AdminClient<Channel>, version: NewVersion) -> Result<Pushed, Status> {
    let NewVersion { files, author, reason, force } = version;
    let names: Vec<(BlobHash, &String, &Bytes)> =
        files.iter().map(|(path, content)| (BlobHash::of(content), path, content)).collect();
    let refs: Vec<pb::FileRef> = names
        .iter()
        .map(|(hash, path, content)| pb::FileRef {
            path: (*path).clone(),
            sha256: hash.to_bytes(),
            bytes: content.len() as u64,
        })
        .collect();
    let offer = pb::OfferRequest { files: refs.clone() };
    let offered = admin.offer(offer).await?.into_inner();
    if offered.unchanged {
        let (generation, version) = (offered.generation, offered.version);
        let done = Done::Unchanged(pb::Activated { generation, version });
        return Ok(Pushed { done, sent_files: 0, sent_bytes: 0 });
    }
    let by_name: BTreeMap<BlobHash, &Bytes> =
        names.iter().map(|(hash, _, content)| (*hash, *content)).collect();
    let lacking = offered.lacking.iter().filter_map(|name| BlobHash::from_bytes(name));
    let lacking: Vec<(BlobHash, Bytes)> = lacking
        .filter_map(|hash| by_name.get(&hash).map(|content| (hash, (*content).clone())))
        .collect();
    let (sent_files, sent_bytes) =
        (lacking.len(), lacking.iter().map(|(_, content)| content.len() as u64).sum());
    upload(admin, lacking).await?;
    let push = pb::PushRequest { files: refs, expected: offered.generation, author, reason, force };
    let done = answered(admin.push(push).await?.into_inner())?;
    Ok(Pushed { done, sent_files, sent_bytes })
}

/// Changes users' tables alone; `None` gives a path back to the versions.
///
/// # Errors
/// What the node answered.
pub async fn change(
    admin: &mut AdminClient<Channel>,
    files: Vec<(String, Option<Bytes>)>,
    author: String,
    reason: String,
    force: bool,
) -> Result<Done, Status> {
    let contents = files.iter().filter_map(|(_, content)| content.clone());
    upload(admin, contents.map(|content| (BlobHash::of(&content), content)).collect()).await?;
    let files = files.into_iter().map(|(path, content)| pb::ChangedFile {
        path,
        sha256: content.map(|content| BlobHash::of(&content).to_bytes()).unwrap_or_default(),
    });
    let change = pb::ChangeRequest { files: files.collect(), author, reason, force };
    answered(admin.change(change).await?.into_inner())
}

fn answered(reply: pb::ActivateReply) -> Result<Done, Status> {
    reply.result.ok_or_else(|| Status::internal("the node's answer is empty: update ppswctl"))
}

async fn upload(
    admin: &mut AdminClient<Channel>,
    contents: Vec<(BlobHash, Bytes)>,
) -> Result<(), Status> {
    if contents.is_empty() {
        return Ok(());
    }
    let chunks: Vec<pb::BlobChunk> =
        contents.into_iter().flat_map(|(hash, content)| chunks(hash, content)).collect();
    admin.upload(stream::iter(chunks)).await?;
    Ok(())
}

/// The pieces of a content; the first one says whose they are. They share its memory.
fn chunks(hash: BlobHash, content: Bytes) -> impl Iterator<Item = pb::BlobChunk> {
    let length = content.len();
    let pieces = length.div_ceil(limits::BLOB_CHUNK_BYTES).max(1);
    (0..pieces).map(move |number| {
        let begin = number * limits::BLOB_CHUNK_BYTES;
        let data = content.slice(begin..(begin + limits::BLOB_CHUNK_BYTES).min(length));
        match number {
            0 => pb::BlobChunk { sha256: hash.to_bytes(), bytes: length as u64, data },
            _ => pb::BlobChunk { data, ..pb::BlobChunk::default() },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_comes_in_pieces_and_an_empty_one_in_one() {
        let content = Bytes::from(vec![7; limits::BLOB_CHUNK_BYTES + 1]);
        let pieces: Vec<_> = chunks(BlobHash::of(&content), content.clone()).collect();
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[0].bytes, content.len() as u64);
        assert!(pieces[1].sha256.is_empty() && pieces[1].data.len() == 1);
        let empty: Vec<_> = chunks(BlobHash::of(b""), Bytes::new()).collect();
        assert_eq!((empty.len(), empty[0].bytes), (1, 0));
        assert_eq!(empty[0].sha256.len(), 32);
    }
}
