module sandkeep/agent

go 1.25
