"""Traces and metrics: what the service tells OpenTelemetry and Prometheus about itself."""
