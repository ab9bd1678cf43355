//! The body of an answer: a text, or a file that is read as the client takes it.

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// The size of a read, in bytes.
const READ_SIZE: u64 = 64 * 1024;

/// A body.
#[derive(Debug)]
pub(super) enum Answer {
    Text(Option<Bytes>),
    /// A file, and what is left to send of it.
    File(File, u64),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(match self.get_mut() {
            Answer::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Answer::File(_, 0) => None,
            Answer::File(file, left) => {
                let mut bytes = Vec::new();
                let read = file.by_ref().take(READ_SIZE.min(*left)).read_to_end(&mut bytes);
                match read {
                    // It was cut meanwhile; the length that was announced cannot be kept.
                    Ok(0) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
                    Ok(read) => {
                        *left -= read as u64;
                        Some(Ok(Frame::data(bytes.into())))
                    }
                    Err(e) => Some(Err(e)),
                }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Text(None) | Answer::File(_, 0))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Answer::Text(text) => text.as_ref().map_or(0, |text| text.len() as u64),
            Answer::File(_, left) => *left,
        })
    }
}
