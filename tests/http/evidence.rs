//! What is held against an agent, and what a caller is told of it.

use crate::net::*;
use crate::support::workspace;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};
use tower_bound_agent::{AgentId, Resolution, Target};
use uuid::Uuid;

/// Answers the first bytes with this, and resets the connection a moment later.
async fn answers_and_resets(answer: &'static [u8]) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 1024];
                let _ = stream.read(&mut some).await;
                let _ = stream.write_all(answer).await;
                sleep(Duration::from_millis(100)).await;
                // What was not read is answered by a reset.
                drop(stream);
            });
        }
    });
    Target::new(AgentId::new(Uuid::new_v4())).with_generation(1).with_address(address)
}

#[tokio::test]
async fn a_connection_that_breaks_after_a_complete_answer_is_no_evidence() {
    let target = answers_and_resets(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno\n").await;
    let (net, ws) = (Net::new(), workspace());
    net.says(ws, Resolution::Running(target));
    let chat = net.bind(ws).await;
    let client = net.client(Speaks::Http1);
    let before = net.counts();
    for dials in 1..4 {
        let (mut sender, body) = http_body_util::channel::Channel::<bytes::Bytes>::new(1);
        let sending =
            tokio::spawn(
                async move { while sender.send_data(bytes::Bytes::from_static(&[7; 64 * 1024])).await.is_ok() {} },
            );
        let response = send(&client, post_("/", chat, Sends::new(body))).await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(text(response).await, "no\n");
        soon(sending).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(net.counts() - before, counts(dials, 0, 0, 0));
    }
}
