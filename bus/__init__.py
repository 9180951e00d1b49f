"""The broker in our words: `port` says what it can do, `memory` is its fake. Only this package imports nats."""
