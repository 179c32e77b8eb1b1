"""Report of a comparison: tables, findings, figures and pages made from records."""
