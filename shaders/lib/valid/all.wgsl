// Every position counts.

fn valid_at(at: Place) -> Flags {
    return own_at(at);
}
