//! Doc comments that are there at run time, too.

/// What the doc comments of a struct and of its fields say, line by line.
pub(super) trait Documented {
    const ABOUT: &'static str;
    /// Name and text of each field, in their order.
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// Defines structs as they stand, and [`Documented`] for them.
macro_rules! documented {
    (
        $(#[$($attribute:tt)+])+
        $visible:vis struct $name:ident {
            $($(#[$($of_field:tt)+])+ $field_visible:vis $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$($attribute)+])+
        $visible struct $name {
            $($(#[$($of_field)+])+ $field_visible $field: $type,)+
        }

        impl $crate::config::documented::Documented for $name {
            const ABOUT: &'static str = concat!($(documented!(@ $($attribute)+)),+);
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), concat!($(documented!(@ $($of_field)+)),+))),+];
        }
    };
    (@ doc = $line:literal) => {
        concat!($line, "\n")
    };
    (@ $($other:tt)+) => {
        ""
    };
}
