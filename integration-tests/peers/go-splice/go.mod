module github.com/isthmus-io/isthmus/integration-tests/peers/go-splice

go 1.26.0
