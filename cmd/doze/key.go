package main

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// accessKey is one access key, as /doze/v1/keys tells it and --json prints it.
type accessKey struct {
	ID string `json:"accessKeyId"`
	// Secret is there once, when the key is made.
	Secret      string `json:"secretAccessKey,omitempty"`
	Account     string `json:"account"`
	Role        string `json:"role"`
	Description string `json:"description,omitempty"`
	CreatedAt   string `json:"createdAt"`
}

const keysPath = "/doze/v1/keys"

var (
	accountPattern = regexp.MustCompile(`^[0-9]{12}$`)
	roles          = []string{"invoker", "deployer", "admin", "root"}
)

func newKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, list and revoke access keys",
		Long: `Make, list and revoke access keys. They count where the platform was started with --auth: there
every request is signed with one, as AWS's clients do anyway. A key belongs to an account, whose
functions it sees and whose bill they are on, and has a role:

  invoker   invokes the account's functions
  deployer  does everything about the account's functions, their logs and their bill
  admin     is a deployer, and makes and revokes the account's keys
  root      is an admin of every account`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{newKeyCreateCommand(), newKeyListCommand(), newKeyRevokeCommand()} {
		addEndpointFlag(c)
		cmd.AddCommand(c)
	}
	return cmd
}

func newKeyCreateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create --role ROLE",
		Short: "Make an access key; its secret is shown this once",
		Example: `  doze key create --role deployer --description ci
  doze key create --role admin --account 111111111111`,
		Args: noArgs,
	}
	role := ""
	cmd.Flags().Var(&choiceValue{&role, roles}, "role", "what it may do: invoker, deployer, admin or root")
	account := addAccountFlag(cmd, "the account it is for, 12 `DIGITS` (default that of the key this is signed with)")
	description := cmd.Flags().String("description", "", "what it is for, as a `TEXT` of at most 64 characters")
	asJSON := addJSONFlag(cmd, "the key")
	cmd.RegisterFlagCompletionFunc("role", oneOf(roles...))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if role == "" {
			return usagef("key create needs --role: %s", strings.Join(roles, ", "))
		}
		if err := checkAccount(*account); err != nil {
			return err
		}
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		request := map[string]string{"role": role}
		for name, value := range map[string]string{"account": *account, "description": *description} {
			if value != "" {
				request[name] = value
			}
		}
		var k accessKey
		if err := c.do(cmd.Context(), http.MethodPost, keysPath, request, &k); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), &k)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "made a key of account %s with role %s; its secret is shown this once\n", k.Account, k.Role)
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "export %s=%s\nexport %s=%s\n", keyIDEnv, k.ID, secretEnv, k.Secret)
		return err
	}
	return cmd
}

func newKeyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List access keys, without their secrets",
		Args:    noArgs,
	}
	account := addAccountFlag(cmd, "only keys of this account, 12 `DIGITS`")
	asJSON := addJSONFlag(cmd, "the keys")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkAccount(*account); err != nil {
			return err
		}
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		query := url.Values{}
		if *account != "" {
			query.Set("account", *account)
		}
		keys := []accessKey{}
		if err := c.get(cmd.Context(), keysPath, query, &keys); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), nonNil(keys))
		}
		if len(keys) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "There are no access keys; `doze key create` makes one.")
			return nil
		}
		t := newTable("ACCESS KEY ID", "ACCOUNT", "ROLE", "CREATED", "DESCRIPTION")
		for _, k := range keys {
			t.add(k.ID, k.Account, k.Role, modified(strings.Replace(k.CreatedAt, "Z", "+0000", 1)), k.Description)
		}
		return t.print(cmd.OutOrStdout())
	}
	return cmd
}

func newKeyRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an access key: what is signed with it is refused from now on",
		Args:  namedArgs("the ID of an access key"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		if err := c.do(cmd.Context(), http.MethodDelete, keysPath+"/"+url.PathEscape(args[0]), nil, nil); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "revoked %s\n", args[0])
		return nil
	}
	return cmd
}

func addAccountFlag(cmd *cobra.Command, usage string) *string {
	return cmd.Flags().String("account", "", usage)
}

func checkAccount(account string) error {
	if account != "" && !accountPattern.MatchString(account) {
		return usagef("--account %q is not an account: 12 digits", account)
	}
	return nil
}
