//! Calls about tokens.

use pollux_api::control::v1::tokens_server::Tokens;
use pollux_api::control::v1::{
    CreateTokenRequest, CreateTokenResponse, ListTokensRequest, ListTokensResponse, RevokeTokenRequest,
    RevokeTokenResponse, StoredToken, Token,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::model::{Checker, FieldError, Guarded, Kind, Record, check_name, label_map, token_spec};
use crate::security::{Action, BearerToken};
use crate::store::{StoreError, Transaction};

use super::errors::CallError;
use super::records::require_name;
use super::{Services, answer};

/// Most tokens at a time.
const TOKENS_MAX: usize = 1000;

/// How often a token is taken back against others.
const ATTEMPTS_MAX: usize = 16;

/// What may be told of a token.
fn told(stored: StoredToken) -> Token {
    Token {
        metadata: stored.metadata,
        spec: stored.spec,
    }
}

impl Services {
    fn token_errors(&self, token: &Token) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let metadata = token.metadata.clone().unwrap_or_default();
        check_name(
            &metadata.name,
            &mut Checker::new("token.metadata.name", &mut errors),
        );
        label_map(
            &metadata.labels,
            &mut Checker::new("token.metadata.labels", &mut errors),
        );
        let now = self.parts.clock.now_unix_us();
        token_spec(
            token.spec.as_ref(),
            now,
            &mut Checker::new("token.spec", &mut errors),
        );
        errors
    }

    async fn make_token(&self, token: Option<Token>) -> Result<CreateTokenResponse, CallError> {
        let token = token.ok_or_else(|| CallError::field("token", "is missing"))?;
        let errors = self.token_errors(&token);
        if !errors.is_empty() {
            return Err(CallError::Fields(errors));
        }
        let present = self.all::<StoredToken>().await?;
        if present.len() >= TOKENS_MAX {
            let description = format!("is one more than {TOKENS_MAX} tokens: revoke others first");
            return Err(CallError::field("token", &description));
        }
        let Token { metadata, spec } = token;
        let metadata = metadata.unwrap_or_default();
        let bearer = BearerToken::generate(&metadata.name);
        let mut stored = StoredToken {
            metadata: None,
            spec,
            secret_sha256: bearer.hash().to_vec(),
        };
        let own = stored.meta_mut();
        own.name = metadata.name;
        own.labels = metadata.labels;
        own.uid = Uuid::new_v4().to_string();
        own.created_unix_us = self.parts.clock.now_unix_us();
        let mut transaction = Transaction::default();
        transaction.put(&stored);
        match self.parts.store.commit(transaction).await {
            Ok(revision) => stored.meta_mut().revision = revision,
            Err(StoreError::Conflict { .. }) => {
                return Err(CallError::NameTaken {
                    kind: Kind::Token,
                    name: stored.name().to_owned(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(CreateTokenResponse {
            token: Some(told(stored)),
            secret: bearer.reveal(),
        })
    }

    async fn revoke(&self, name: &str) -> Result<(), CallError> {
        for _ in 0..ATTEMPTS_MAX {
            let stored = match self.find::<StoredToken>(name).await {
                Err(CallError::NotFound { .. }) => return Ok(()),
                found => found?,
            };
            let mut transaction = Transaction::default();
            transaction.delete(&stored);
            match self.parts.store.commit(transaction).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::Contended {
            kind: Kind::Token,
            name: name.to_owned(),
        })
    }
}

#[tonic::async_trait]
impl Tokens for Services {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = self.permit(&request, Action::Administer)?;
        let made = self.make_token(request.into_inner().token).await?;
        let name = made.token.as_ref().and_then(|token| token.metadata.as_ref());
        let name = name.map_or("", |metadata| metadata.name.as_str());
        tracing::info!(token = name, caller = caller.name, "token made");
        answer!(made)
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        self.permit(&request, Action::Administer)?;
        let page = self
            .page::<StoredToken>(request.into_inner().page, "", |_| true)
            .await?;
        answer!(ListTokensResponse {
            tokens: page.records.into_iter().map(told).collect(),
            next_page_token: page.next_page_token,
            revision: page.revision,
        })
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let caller = self.permit(&request, Action::Administer)?;
        let name = request.into_inner().name;
        require_name(&name)?;
        self.revoke(&name).await?;
        tracing::info!(token = name, caller = caller.name, "token revoked");
        answer!(RevokeTokenResponse {})
    }
}
