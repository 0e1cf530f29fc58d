// Thumbnail is an example function: it makes a small PNG of a JPEG or PNG. It is an ordinary Lambda
// function in Go (provided.al2023, aws-lambda-go) and knows nothing of Doze.
package main

import "github.com/aws/aws-lambda-go/lambda"

func main() { lambda.Start(handle) }
