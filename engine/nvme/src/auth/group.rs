//! The Diffie-Hellman groups (NVMe Base 2.2, Figure 742; RFC 7919), and the exchange in one of them.

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, CheckedSub, Odd, Resize};
use zeroize::{Zeroize, Zeroizing};

use super::Entropy;
use crate::wire::auth::GroupId;

/// ffdhe2048 (RFC 7919, appendix A).
const FFDHE_2048: &str = "\
    FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695\
    A9E13641146433FBCC939DCE249B3EF97D2FE363630C75D8F681B202AEC4617A\
    D3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935\
    984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797A\
    BC0AB182B324FB61D108A94BB2C8E3FBB96ADAB760D7F4681D4F42A3DE394DF4\
    AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61\
    9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005\
    C58EF1837D1683B2C6F34A26C1B2EFFA886B423861285C97FFFFFFFFFFFFFFFF";

/// ffdhe3072 (RFC 7919, appendix A).
const FFDHE_3072: &str = "\
    FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695\
    A9E13641146433FBCC939DCE249B3EF97D2FE363630C75D8F681B202AEC4617A\
    D3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935\
    984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797A\
    BC0AB182B324FB61D108A94BB2C8E3FBB96ADAB760D7F4681D4F42A3DE394DF4\
    AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61\
    9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005\
    C58EF1837D1683B2C6F34A26C1B2EFFA886B4238611FCFDCDE355B3B6519035B\
    BC34F4DEF99C023861B46FC9D6E6C9077AD91D2691F7F7EE598CB0FAC186D91C\
    AEFE130985139270B4130C93BC437944F4FD4452E2D74DD364F2E21E71F54BFF\
    5CAE82AB9C9DF69EE86D2BC522363A0DABC521979B0DEADA1DBF9A42D5C4484E\
    0ABCD06BFA53DDEF3C1B20EE3FD59D7C25E41D2B66C62E37FFFFFFFFFFFFFFFF";

/// ffdhe4096 (RFC 7919, appendix A).
const FFDHE_4096: &str = "\
    FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695\
    A9E13641146433FBCC939DCE249B3EF97D2FE363630C75D8F681B202AEC4617A\
    D3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935\
    984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797A\
    BC0AB182B324FB61D108A94BB2C8E3FBB96ADAB760D7F4681D4F42A3DE394DF4\
    AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61\
    9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005\
    C58EF1837D1683B2C6F34A26C1B2EFFA886B4238611FCFDCDE355B3B6519035B\
    BC34F4DEF99C023861B46FC9D6E6C9077AD91D2691F7F7EE598CB0FAC186D91C\
    AEFE130985139270B4130C93BC437944F4FD4452E2D74DD364F2E21E71F54BFF\
    5CAE82AB9C9DF69EE86D2BC522363A0DABC521979B0DEADA1DBF9A42D5C4484E\
    0ABCD06BFA53DDEF3C1B20EE3FD59D7C25E41D2B669E1EF16E6F52C3164DF4FB\
    7930E9E4E58857B6AC7D5F42D69F6D187763CF1D5503400487F55BA57E31CC7A\
    7135C886EFB4318AED6A1E012D9E6832A907600A918130C46DC778F971AD0038\
    092999A333CB8B7A1A1DB93D7140003C2A4ECEA9F98D0ACC0A8291CDCEC97DCF\
    8EC9B55A7F88A46B4DB5A851F44182E1C68A007E5E655F6AFFFFFFFFFFFFFFFF";

/// ffdhe6144 (RFC 7919, appendix A).
const FFDHE_6144: &str = "\
    FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695\
    A9E13641146433FBCC939DCE249B3EF97D2FE363630C75D8F681B202AEC4617A\
    D3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935\
    984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797A\
    BC0AB182B324FB61D108A94BB2C8E3FBB96ADAB760D7F4681D4F42A3DE394DF4\
    AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61\
    9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005\
    C58EF1837D1683B2C6F34A26C1B2EFFA886B4238611FCFDCDE355B3B6519035B\
    BC34F4DEF99C023861B46FC9D6E6C9077AD91D2691F7F7EE598CB0FAC186D91C\
    AEFE130985139270B4130C93BC437944F4FD4452E2D74DD364F2E21E71F54BFF\
    5CAE82AB9C9DF69EE86D2BC522363A0DABC521979B0DEADA1DBF9A42D5C4484E\
    0ABCD06BFA53DDEF3C1B20EE3FD59D7C25E41D2B669E1EF16E6F52C3164DF4FB\
    7930E9E4E58857B6AC7D5F42D69F6D187763CF1D5503400487F55BA57E31CC7A\
    7135C886EFB4318AED6A1E012D9E6832A907600A918130C46DC778F971AD0038\
    092999A333CB8B7A1A1DB93D7140003C2A4ECEA9F98D0ACC0A8291CDCEC97DCF\
    8EC9B55A7F88A46B4DB5A851F44182E1C68A007E5E0DD9020BFD64B645036C7A\
    4E677D2C38532A3A23BA4442CAF53EA63BB454329B7624C8917BDD64B1C0FD4C\
    B38E8C334C701C3ACDAD0657FCCFEC719B1F5C3E4E46041F388147FB4CFDB477\
    A52471F7A9A96910B855322EDB6340D8A00EF092350511E30ABEC1FFF9E3A26E\
    7FB29F8C183023C3587E38DA0077D9B4763E4E4B94B2BBC194C6651E77CAF992\
    EEAAC0232A281BF6B3A739C1226116820AE8DB5847A67CBEF9C9091B462D538C\
    D72B03746AE77F5E62292C311562A846505DC82DB854338AE49F5235C95B9117\
    8CCF2DD5CACEF403EC9D1810C6272B045B3B71F9DC6B80D63FDD4A8E9ADB1E69\
    62A69526D43161C1A41D570D7938DAD4A40E329CD0E40E65FFFFFFFFFFFFFFFF";

/// ffdhe8192 (RFC 7919, appendix A).
const FFDHE_8192: &str = "\
    FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695\
    A9E13641146433FBCC939DCE249B3EF97D2FE363630C75D8F681B202AEC4617A\
    D3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935\
    984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797A\
    BC0AB182B324FB61D108A94BB2C8E3FBB96ADAB760D7F4681D4F42A3DE394DF4\
    AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61\
    9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005\
    C58EF1837D1683B2C6F34A26C1B2EFFA886B4238611FCFDCDE355B3B6519035B\
    BC34F4DEF99C023861B46FC9D6E6C9077AD91D2691F7F7EE598CB0FAC186D91C\
    AEFE130985139270B4130C93BC437944F4FD4452E2D74DD364F2E21E71F54BFF\
    5CAE82AB9C9DF69EE86D2BC522363A0DABC521979B0DEADA1DBF9A42D5C4484E\
    0ABCD06BFA53DDEF3C1B20EE3FD59D7C25E41D2B669E1EF16E6F52C3164DF4FB\
    7930E9E4E58857B6AC7D5F42D69F6D187763CF1D5503400487F55BA57E31CC7A\
    7135C886EFB4318AED6A1E012D9E6832A907600A918130C46DC778F971AD0038\
    092999A333CB8B7A1A1DB93D7140003C2A4ECEA9F98D0ACC0A8291CDCEC97DCF\
    8EC9B55A7F88A46B4DB5A851F44182E1C68A007E5E0DD9020BFD64B645036C7A\
    4E677D2C38532A3A23BA4442CAF53EA63BB454329B7624C8917BDD64B1C0FD4C\
    B38E8C334C701C3ACDAD0657FCCFEC719B1F5C3E4E46041F388147FB4CFDB477\
    A52471F7A9A96910B855322EDB6340D8A00EF092350511E30ABEC1FFF9E3A26E\
    7FB29F8C183023C3587E38DA0077D9B4763E4E4B94B2BBC194C6651E77CAF992\
    EEAAC0232A281BF6B3A739C1226116820AE8DB5847A67CBEF9C9091B462D538C\
    D72B03746AE77F5E62292C311562A846505DC82DB854338AE49F5235C95B9117\
    8CCF2DD5CACEF403EC9D1810C6272B045B3B71F9DC6B80D63FDD4A8E9ADB1E69\
    62A69526D43161C1A41D570D7938DAD4A40E329CCFF46AAA36AD004CF600C838\
    1E425A31D951AE64FDB23FCEC9509D43687FEB69EDD1CC5E0B8CC3BDF64B10EF\
    86B63142A3AB8829555B2F747C932665CB2C0F1CC01BD70229388839D2AF05E4\
    54504AC78B7582822846C0BA35C35F5C59160CC046FD8251541FC68C9C86B022\
    BB7099876A460E7451A8A93109703FEE1C217E6C3826E52C51AA691E0E423CFC\
    99E9E31650C1217B624816CDAD9A95F9D5B8019488D9C0A0A1FE3075A577E231\
    83F81D4A3F2FA4571EFC8CE0BA8A4FE8B6855DFE72B0A66EDED2FBABFBE58A30\
    FAFABE1C5D71A87E2F741EF8C1FE86FEA6BBFDE530677F0D97D11D49F7A8443D\
    0822E506A9F4614E011E2A94838FF88CD68C8BB7C5C6424CFFFFFFFFFFFFFFFF";

/// Bits of a private exponent: twice the strength of the largest group, and more than the 256 that the
/// specification asks for.
const EXPONENT_BITS: u32 = 512;

impl GroupId {
    /// Size of a value of the group, in bytes; 0 without an exchange.
    #[must_use]
    pub const fn value_bytes(self) -> usize {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 2048 / 8,
            Self::Ffdhe3072 => 3072 / 8,
            Self::Ffdhe4096 => 4096 / 8,
            Self::Ffdhe6144 => 6144 / 8,
            Self::Ffdhe8192 => 8192 / 8,
        }
    }

    fn modulus(self) -> Option<BoxedUint> {
        let digits = match self {
            Self::Null => return None,
            Self::Ffdhe2048 => FFDHE_2048,
            Self::Ffdhe3072 => FFDHE_3072,
            Self::Ffdhe4096 => FFDHE_4096,
            Self::Ffdhe6144 => FFDHE_6144,
            Self::Ffdhe8192 => FFDHE_8192,
        };
        // Four bits a digit.
        let bits = u32::try_from(digits.len() * 4).ok()?;
        BoxedUint::from_be_hex(digits, bits).into_option()
    }
}

/// One side of an exchange: a private exponent, and the value for the other side.
pub(super) struct Exchange {
    group: GroupId,
    exponent: Zeroizing<BoxedUint>,
    /// The value for the other side, as it travels.
    pub(super) public: Vec<u8>,
}

impl Exchange {
    /// A fresh exponent. `None` without an exchange.
    pub(super) fn new(group: GroupId, entropy: &mut Entropy<'_>) -> Option<Self> {
        let modulus = group.modulus()?;
        let mut bytes = Zeroizing::new([0; EXPONENT_BITS as usize / 8]);
        super::fill(entropy, &mut *bytes);
        let exponent = BoxedUint::from_be_slice(&*bytes, EXPONENT_BITS).ok()?;
        let generator = BoxedUint::from(2u8).resize(modulus.bits_precision());
        let public = power(&modulus, &generator, &exponent)?;
        Some(Self {
            group,
            exponent: Zeroizing::new(exponent),
            public: public.to_vec(),
        })
    }

    /// The key that both sides share. `None` for a value of the other side that is none of the group: of
    /// another length, 0, 1, or the modulus less 1 or more.
    pub(super) fn shared(&self, other: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let modulus = self.group.modulus()?;
        if other.len() != self.group.value_bytes() {
            return None;
        }
        let other = BoxedUint::from_be_slice(other, modulus.bits_precision()).ok()?;
        let one = BoxedUint::one_with_precision(modulus.bits_precision());
        let last = modulus.checked_sub(&one).into_option()?;
        if other <= one || other >= last {
            return None;
        }
        power(&modulus, &other, &self.exponent)
    }
}

/// A power in the group, in time that does not depend on the exponent, as it travels: as long as the modulus.
fn power(modulus: &BoxedUint, base: &BoxedUint, exponent: &BoxedUint) -> Option<Zeroizing<Vec<u8>>> {
    let odd = Odd::new(modulus.clone()).into_option()?;
    let parameters = BoxedMontyParams::new(odd);
    let mut power = BoxedMontyForm::new(base.clone(), &parameters).pow(exponent);
    let mut value = power.retrieve();
    let bytes = Zeroizing::new(value.to_be_bytes().into_vec());
    value.zeroize();
    power.zeroize();
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entropy(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.rotate_left(29)
        }
    }

    /// The ends, and by Fermat's test that the modulus is a prime of which 2 is a square, as of a safe prime.
    /// Any wrong digit would show.
    #[test]
    fn the_groups_are_those_of_the_rfc() {
        for (group, end) in [
            (GroupId::Ffdhe2048, "886B423861285C97FFFFFFFFFFFFFFFF"),
            (GroupId::Ffdhe3072, "25E41D2B66C62E37FFFFFFFFFFFFFFFF"),
            (GroupId::Ffdhe4096, "C68A007E5E655F6AFFFFFFFFFFFFFFFF"),
            (GroupId::Ffdhe6144, "A40E329CD0E40E65FFFFFFFFFFFFFFFF"),
            (GroupId::Ffdhe8192, "D68C8BB7C5C6424CFFFFFFFFFFFFFFFF"),
        ] {
            let modulus = group.modulus().unwrap();
            assert_eq!(modulus.bits() as usize, group.value_bytes() * 8);
            let digits = format!("{modulus:X}");
            assert!(
                digits.starts_with("FFFFFFFFFFFFFFFFADF85458A2BB4A9A"),
                "{group:?}"
            );
            assert!(digits.ends_with(end), "{group:?}");
            let two = BoxedUint::from(2u8).resize(modulus.bits_precision());
            let mut one = power(&modulus, &two, &modulus.shr(1)).unwrap();
            assert_eq!(one.pop(), Some(1));
            assert!(one.iter().all(|byte| *byte == 0), "{group:?}");
        }
        assert!(GroupId::Null.modulus().is_none());
    }

    #[test]
    fn both_sides_come_to_the_same_key() {
        for group in [GroupId::Ffdhe2048, GroupId::Ffdhe3072] {
            let one = Exchange::new(group, &mut entropy(1)).unwrap();
            let two = Exchange::new(group, &mut entropy(2)).unwrap();
            assert_ne!(one.public, two.public);
            assert_eq!(one.public.len(), group.value_bytes());
            let key = one.shared(&two.public).unwrap();
            assert_eq!(key, two.shared(&one.public).unwrap());
            assert_eq!(key.len(), group.value_bytes());
        }
    }

    #[test]
    fn values_outside_the_group_are_refused() {
        let group = GroupId::Ffdhe2048;
        let exchange = Exchange::new(group, &mut entropy(1)).unwrap();
        let modulus = group.modulus().unwrap();
        let one = BoxedUint::one_with_precision(modulus.bits_precision());
        let mut bad = vec![
            vec![0; 256],
            vec![0xff; 256],
            vec![2; 255],
            vec![2; 257],
            Vec::new(),
        ];
        bad.push(one.to_be_bytes().into_vec());
        bad.push(modulus.to_be_bytes().into_vec());
        bad.push(modulus.checked_sub(&one).unwrap().to_be_bytes().into_vec());
        for value in bad {
            assert!(exchange.shared(&value).is_none());
        }
        let two = BoxedUint::from(2u8).resize(modulus.bits_precision());
        assert!(exchange.shared(&two.to_be_bytes()).is_some());
    }
}
