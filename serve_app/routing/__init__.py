"""Which replica a request goes to: decisions are pure, only `router` knows Ray."""
