// Grafana's schema of dashboards, for a test alone.
module github.com/ctlogd/ctlogd/deploy/grafana/schema

go 1.26

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
