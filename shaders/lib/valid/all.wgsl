// Every position counts.

fn valid_at(at: Place) -> Flags {
    return Flags(true);
}
