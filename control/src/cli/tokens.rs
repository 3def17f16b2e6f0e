//! `pollux token`: rights to call for those who have no certificate.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Subcommand, ValueEnum};
use pollux_api::control::v1::tokens_client::TokensClient;
use pollux_api::control::v1::{
    CreateTokenRequest, ListTokensRequest, Metadata, PageRequest, RevokeTokenRequest, Token, TokenRole,
    TokenSpec,
};

use super::connection::{Channel, CommandError};
use super::output::{Output, serialized, short, table, time};

/// Days that a token is good for, if nothing else is said.
const LIFETIME_DAYS_DEFAULT: u64 = 30;

/// A day in microseconds.
const DAY_US: u64 = 86_400_000_000;

/// `token`.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make one, and print it this one time: only a hash of it is kept.
    Create {
        /// Its name.
        name: String,
        /// What its bearer may do.
        #[arg(long, value_enum)]
        role: BearerRole,
        /// For how many days it is good, 1 to 366.
        #[arg(long, value_name = "N", default_value_t = LIFETIME_DAYS_DEFAULT)]
        days: u64,
    },
    /// List all; what they are is never told.
    List,
    /// Take one back.
    Revoke {
        /// Its name.
        name: String,
    },
}

/// What the bearer of a token may do.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum BearerRole {
    Viewer,
    Csi,
    Operator,
    Admin,
}

impl From<BearerRole> for TokenRole {
    fn from(role: BearerRole) -> Self {
        match role {
            BearerRole::Viewer => Self::Viewer,
            BearerRole::Csi => Self::Csi,
            BearerRole::Operator => Self::Operator,
            BearerRole::Admin => Self::Admin,
        }
    }
}

fn now_unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Does it.
pub(super) async fn run(
    channel: &Channel,
    command: &TokenCommand,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let mut client = TokensClient::new(channel.clone());
    match command {
        TokenCommand::Create { name, role, days } => {
            let token = Token {
                metadata: Some(Metadata {
                    name: name.clone(),
                    ..Metadata::default()
                }),
                spec: Some(TokenSpec {
                    role: TokenRole::from(*role).into(),
                    expires_unix_us: now_unix_us().saturating_add(days.saturating_mul(DAY_US)),
                }),
            };
            let request = CreateTokenRequest { token: Some(token) };
            let made = client.create_token(request).await?.into_inner();
            match output {
                Output::Json | Output::Yaml => serialized(&made, output, into)?,
                // Nothing else, so that it can go straight into a file.
                Output::Table | Output::Wide => writeln!(into, "{}", made.secret)?,
            }
        }
        TokenCommand::List => {
            let tokens = all(&mut client).await?;
            if matches!(output, Output::Json | Output::Yaml) {
                return serialized(&tokens, output, into);
            }
            let rows = tokens.into_iter().map(|token| {
                let spec = token.spec.unwrap_or_default();
                let metadata = token.metadata.unwrap_or_default();
                let expires = match spec.expires_unix_us <= now_unix_us() {
                    true => "expired".to_owned(),
                    false => time(spec.expires_unix_us),
                };
                let role = short(spec.role().as_str_name(), "TOKEN_ROLE_");
                vec![metadata.name, role, time(metadata.created_unix_us), expires]
            });
            table(&["NAME", "ROLE", "MADE", "EXPIRES"], rows.collect(), into)?;
        }
        TokenCommand::Revoke { name } => {
            // It must not be thought that the right one was taken back.
            let tokens = all(&mut client).await?;
            let is_known = |token: &Token| token.metadata.as_ref().is_some_and(|known| known.name == *name);
            if !tokens.iter().any(is_known) {
                return Err(CommandError::Refused(format!(
                    "there is no token {name}: `pollux token list` shows those there are"
                )));
            }
            client
                .revoke_token(RevokeTokenRequest { name: name.clone() })
                .await?;
            writeln!(into, "token {name} is revoked")?;
        }
    }
    Ok(())
}

async fn all(client: &mut TokensClient<Channel>) -> Result<Vec<Token>, CommandError> {
    let mut all = Vec::new();
    let mut page = PageRequest {
        size: 1000,
        token: String::new(),
    };
    loop {
        let request = ListTokensRequest {
            page: Some(page.clone()),
        };
        let listed = client.list_tokens(request).await?.into_inner();
        all.extend(listed.tokens);
        if listed.next_page_token.is_empty() {
            return Ok(all);
        }
        page.token = listed.next_page_token;
    }
}
