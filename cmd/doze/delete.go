package main

import (
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/spf13/cobra"
)

func newDeleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Aliases:           []string{"rm"},
		Short:             "Delete a function, or one of its versions",
		Args:              namedArgs("the NAME of a function"),
		ValidArgsFunction: completeFunction,
	}
	qualifier := cmd.Flags().String("qualifier", "", "delete only this published `VERSION`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		input := &lambda.DeleteFunctionInput{FunctionName: &args[0]}
		what := args[0]
		if *qualifier != "" {
			input.Qualifier = aws.String(*qualifier)
			what += " version " + *qualifier
		}
		if _, err := c.DeleteFunction(cmd.Context(), input, once); err != nil {
			return c.explain(err)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "deleted %s\n", what)
		return nil
	}
	return cmd
}
