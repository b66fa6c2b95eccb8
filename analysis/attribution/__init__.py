"""Which weights and neurons carry a piece of knowledge; for any module and any scalar target."""
