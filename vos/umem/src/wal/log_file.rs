//! The log file: positions that only grow, on a file that is written round and round.

use daos_xstream::{Durability, IoBuffer, MediaError, MediaFile};

/// The file of a log.
#[derive(Clone)]
pub(crate) struct LogFile<F> {
    file: F,
    bytes: u64,
}

impl<F: MediaFile> LogFile<F> {
    /// The log in `file`, all of it.
    pub fn new(file: F) -> Self {
        Self { bytes: file.size(), file }
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where a position lies in the file.
    pub fn place(&self, position: u64) -> u64 {
        position % self.bytes
    }

    /// Writes whole blocks at `position`; durable on return. Gives the buffer back.
    pub async fn write(&self, position: u64, buffer: IoBuffer) -> (IoBuffer, Result<(), MediaError>) {
        let place = self.place(position);
        let before_end = (self.bytes - place) as usize;
        if buffer.len() <= before_end {
            return self.file.write(place, buffer, Durability::Durable).await;
        }
        // Once per round a frame goes over the end of the file. Its checksum covers both parts.
        let (head, tail) = buffer.as_slice().split_at(before_end);
        let (head, tail) = (IoBuffer::copy_of(head), IoBuffer::copy_of(tail));
        let (_, result) = self.file.write(place, head, Durability::Durable).await;
        if result.is_err() {
            return (buffer, result);
        }
        let (_, result) = self.file.write(0, tail, Durability::Durable).await;
        (buffer, result)
    }

    /// Reads whole blocks from `position`, not past the end of the file: as many as `buffer` has or there are.
    pub async fn read(&self, position: u64, mut buffer: IoBuffer) -> Result<IoBuffer, MediaError> {
        let place = self.place(position);
        buffer.set_len(buffer.len().min((self.bytes - place) as usize));
        let (buffer, result) = self.file.read(place, buffer).await;
        result.map(|()| buffer)
    }

    /// Returns when everything that can be read now survives any crash.
    pub async fn flush(&self) -> Result<(), MediaError> {
        self.file.flush().await
    }
}
