"""Generated from proto/tidings.proto by `make proto`; never edited."""
