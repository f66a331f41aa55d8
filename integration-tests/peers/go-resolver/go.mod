module github.com/isthmus-io/isthmus/integration-tests/peers/go-resolver

go 1.26.0
