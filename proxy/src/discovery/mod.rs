//! From what xDS delivers to what runs: converted, warmed, applied in order, acknowledged, recorded in the ledger.
