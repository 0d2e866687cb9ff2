"""What users do, one module a scenario. Importing one imports Locust."""
