//! An API server of Kubernetes that knows pods and sets of replicas, and misbehaves when it is told to.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{Response, StatusCode};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};

/// How it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    Forbids,
    Silent,
    Nonsense,
}

#[derive(Debug, Default)]
pub struct Known {
    pub mood: Mood,
    /// Pods with the namespace and the node that they are on.
    pub pods: Vec<(String, String, Value)>,
    /// Sets of replicas that belong to a deployment.
    pub sets: Vec<(String, String)>,
    /// Questions that were asked.
    pub asked: u64,
}

#[derive(Debug, Clone, Default)]
pub struct ApiServer(Arc<Mutex<Known>>);

fn body(status: StatusCode, text: String) -> Response<Body> {
    let answer = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    answer.body(Body::from(text)).expect("a response")
}

fn failure(code: StatusCode, reason: &str) -> Response<Body> {
    let text = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("it is {reason}"), "reason": reason, "code": code.as_u16(),
    });
    body(code, text.to_string())
}

/// What it answers in its mood, if it is not well.
async fn moody(server: &ApiServer) -> Option<Response<Body>> {
    let mood = {
        let mut known = server.lock();
        known.asked += 1;
        known.mood
    };
    match mood {
        Mood::Well => None,
        Mood::Forbids => Some(failure(StatusCode::FORBIDDEN, "Forbidden")),
        Mood::Silent => std::future::pending().await,
        Mood::Nonsense => Some(body(StatusCode::OK, r#"{"items": [{"metadata": 7"#.to_owned())),
    }
}

async fn pods(
    State(server): State<ApiServer>,
    Path(namespace): Path<String>,
    RawQuery(query): RawQuery,
) -> Response<Body> {
    if let Some(answer) = moody(&server).await {
        return answer;
    }
    let query = query.unwrap_or_default();
    let known = server.lock();
    let matching = known.pods.iter().filter(|(own, node, _)| {
        *own == namespace && query.contains(&format!("fieldSelector=spec.nodeName%3D{node}&"))
    });
    let items: Vec<Value> = matching.map(|(_, _, pod)| pod.clone()).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    body(StatusCode::OK, list.to_string())
}

async fn set(State(server): State<ApiServer>, Path((_, name)): Path<(String, String)>) -> Response<Body> {
    if let Some(answer) = moody(&server).await {
        return answer;
    }
    let known = server.lock();
    let Some((_, deployment)) = known.sets.iter().find(|(set, _)| *set == name) else {
        return failure(StatusCode::NOT_FOUND, "NotFound");
    };
    let set = json!({
        "kind": "ReplicaSet", "apiVersion": "apps/v1",
        "metadata": {"name": name, "ownerReferences": [owner("Deployment", deployment)]},
    });
    body(StatusCode::OK, set.to_string())
}

fn owner(kind: &str, name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true})
}

impl ApiServer {
    pub fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("nobody panicked")
    }

    pub fn set_mood(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    /// A pod in the namespace `shop` on a node, with a claim.
    pub fn add(&self, name: &str, node: &str, claim: &str, owner_of_it: Option<(&str, &str)>) {
        let owners: Vec<Value> = owner_of_it.iter().map(|(kind, name)| owner(kind, name)).collect();
        let pod = json!({
            "metadata": {"name": name, "namespace": "shop", "ownerReferences": owners},
            "spec": {
                "nodeName": node, "containers": [],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
            },
            "status": {"phase": "Pending"},
        });
        self.add_as("shop", node, pod);
    }

    pub fn add_as(&self, namespace: &str, node: &str, pod: Value) {
        self.lock()
            .pods
            .push((namespace.to_owned(), node.to_owned(), pod));
    }

    pub fn remove(&self, name: &str) {
        self.lock()
            .pods
            .retain(|(_, _, pod)| pod["metadata"]["name"] != name);
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/api/v1/namespaces/{namespace}/pods", get(pods))
            .route(
                "/apis/apps/v1/namespaces/{namespace}/replicasets/{name}",
                get(set),
            )
            .with_state(self.clone())
    }

    /// Has a port that nobody answers at until it is told to.
    pub fn away() -> TcpSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        let anywhere = "127.0.0.1:0".parse().expect("an address");
        socket.bind(anywhere).expect("a port");
        socket
    }

    pub fn serve(&self, listener: TcpListener) {
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
}

/// With what a server at this port is reached.
pub fn kubeconfig(directory: &std::path::Path, port: u16) -> PathBuf {
    let path = directory.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         users: [{{name: u, user: {{token: word}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&path, text).expect("it can be written");
    path
}
