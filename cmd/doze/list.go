package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/spf13/cobra"
)

func newListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the functions",
		Args:    noArgs,
	}
	asJSON := addJSONFlag(cmd, "FunctionConfiguration objects")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		functions, err := c.functions(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), awsJSON(functions))
		}
		if len(functions) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "There are no functions yet; `doze deploy` makes one.")
			return nil
		}
		t := newTable("NAME", "RUNTIME", "HANDLER", ">MEMORY", ">TIMEOUT", ">CODE", "MODIFIED")
		for _, f := range functions {
			t.add(
				aws.ToString(f.FunctionName), string(f.Runtime), aws.ToString(f.Handler),
				fmt.Sprintf("%d MB", aws.ToInt32(f.MemorySize)), fmt.Sprintf("%d s", aws.ToInt32(f.Timeout)),
				size(f.CodeSize), modified(aws.ToString(f.LastModified)),
			)
		}
		return t.print(cmd.OutOrStdout())
	}
	return cmd
}

// functions is every function, page after page; never nil.
func (c *client) functions(ctx context.Context) ([]types.FunctionConfiguration, error) {
	all := []types.FunctionConfiguration{}
	pages := lambda.NewListFunctionsPaginator(c.Client, &lambda.ListFunctionsInput{}, func(o *lambda.ListFunctionsPaginatorOptions) {
		o.StopOnDuplicateToken = true
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, c.explain(err)
		}
		all = append(all, page.Functions...)
	}
	return all, nil
}

// modified shortens AWS's LastModified ("2024-05-01T12:34:56.789+0000") to what fits a table.
func modified(s string) string {
	at, err := time.Parse("2006-01-02T15:04:05.000-0700", s)
	if err != nil {
		return strings.ReplaceAll(s, "T", " ")
	}
	return at.UTC().Format("2006-01-02 15:04:05")
}
