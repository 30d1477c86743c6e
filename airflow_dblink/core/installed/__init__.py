"""Tables of ours on servers: who may be trusted with them."""
