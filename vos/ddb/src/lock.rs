//! Keeping the engine out while a target is looked at, and being kept out while the engine runs.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::Failure;

/// How far above a target the engine's folder may be.
const LEVELS: usize = 4;

/// A lock that is held as long as it lives; `None` if the target belongs to no engine's folder.
pub(crate) struct Held {
    _file: Option<File>,
}

/// Takes the lock of the engine to whose folder `target` belongs.
pub(crate) fn take(target: &Path) -> Result<Held, Failure> {
    let target = target.canonicalize().map_err(|error| format!("{}: {error}", target.display()))?;
    for folder in target.ancestors().take(LEVELS) {
        let path = folder.join("engine.lock");
        let Ok(file) = File::open(&path) else { continue };
        return match file.try_lock() {
            Ok(()) => Ok(Held { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(Failure(format!(
                "{}: in use by a running engine; stop it first (dmg system stop)",
                target.display()
            ))),
            Err(TryLockError::Error(error)) => Err(Failure(format!("{}: {error}", path.display()))),
        };
    }
    Ok(Held { _file: None })
}
