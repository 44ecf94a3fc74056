//! A name server that knows no name: nodes ask for the names of their clients, and should not wait for the answer.

use std::net::UdpSocket;

use super::{HarnessError, network};

pub(super) const PORT: u16 = 2553;
const HEADER: usize = 12;

/// Serves until the process ends.
pub(super) fn start() -> Result<(), HarnessError> {
    let address = network::harness(PORT);
    let failed = |error| HarnessError::Listen { address, error };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    std::thread::spawn(move || {
        let mut question = [0; 512];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
            if let Some(answer) = no_such_name(&question[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

/// NXDOMAIN for a question (RFC 1035 §4.1); `None`: it is none.
fn no_such_name(question: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEADER;
    loop {
        match *question.get(end)? {
            0 => break,
            length => end += 1 + usize::from(length),
        }
    }
    // The root label, type and class.
    let mut answer = question.get(..end + 5)?.to_vec();
    // A response, recursion desired and available, name error; one question, nothing else.
    answer[2..HEADER].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_with_a_name_error() {
        let question =
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x0c\x00\x01OPT";
        let answer = no_such_name(question).unwrap();
        assert_eq!(
            answer,
            b"\x12\x34\x81\x83\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x0c\x00\x01"
        );
        assert_eq!(no_such_name(&question[..14]), None);
    }
}
