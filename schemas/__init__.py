"""JSON Schemas of every document that DeltaHub writes; installed as `deltahub.schemas`."""
