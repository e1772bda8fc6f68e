"""The ledger of published claims: what is claimed, how it is tested at three scales, and what was found."""
