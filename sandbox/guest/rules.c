/* What the controller may send. Whatever breaks a rule ends the stream: two sides that disagree on what a byte means
 * must not go on. */
#include "guest.h"

static const struct rule {
    uint8_t type;
    uint8_t flags; /* those that it may have */
    bool has_call;
    uint32_t least;
    uint32_t most;
} rules[] = {
    {F_OPEN, 0, true, sizeof(struct open_request), sizeof(struct open_request)},
    {F_INPUT, INPUT_LAST, true, 0, FRAME_MAX},
    {F_CREDIT, 0, true, sizeof(uint32_t), sizeof(uint32_t)},
    {F_CANCEL, 0, true, 0, 0},
    {F_PING, 0, false, 0, PING_MAX},
    {F_RESET, 0, false, 0, 0},
};

static const struct rule *find_rule(uint8_t type)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        if (rules[i].type == type)
            return &rules[i];
    return NULL;
}

/* Judged before the payload is waited for: nothing in the stream decides how much memory is taken. */
void judge_header(const struct frame_header *head)
{
    const struct rule *rule = find_rule(head->type);
    if (!rule)
        link_die(GUEST_PROTOCOL, "a frame has the unknown type %u", head->type);
    if (head->length < rule->least || head->length > rule->most)
        link_die(GUEST_PROTOCOL, "a frame of type %u has a length of %u bytes; it may have %u to %u", head->type,
                 head->length, rule->least, rule->most);
    if ((head->flag & ~rule->flags) != 0 || head->zero != 0 || (head->id != 0) != rule->has_call)
        link_die(GUEST_PROTOCOL, "a frame of type %u has the flag %u, %u for zero and the id %u", head->type,
                 head->flag, head->zero, head->id);
}

static bool argument_count_fits(const struct open_request *request)
{
    switch (request->kind) {
    case KIND_RUN:
        return request->argc >= 1;
    case KIND_CHECK:
        return true;
    default:
        return request->argc == 1;
    }
}

/* The user, the cwd and each argument and variable take a NUL of the body at least. */
void judge_open(const struct open_request *request)
{
    const uint8_t known = CALL_MERGE | CALL_WATCH | CALL_STDIN | CALL_SCRIPT;
    uint64_t strings = (uint64_t)request->argc + request->envc + 2;
    if (request->kind < KIND_RUN || request->kind > KIND_CHECK || request->zero != 0 ||
        (request->flags & ~(request->kind == KIND_RUN ? known : 0)) != 0)
        link_die(GUEST_PROTOCOL, "an OPEN has the kind %u, the flags %u and %u for zero", request->kind,
                 request->flags, request->zero);
    if (request->body_len > BODY_MAX || request->script_len > SCRIPT_MAX || request->output_limit > OUTPUT_LIMIT_MAX)
        link_die(GUEST_PROTOCOL, "an OPEN asks for more than the protocol allows");
    if (strings > request->body_len || !argument_count_fits(request) ||
        (request->script_len > 0 && !(request->flags & CALL_SCRIPT)))
        link_die(GUEST_PROTOCOL, "an OPEN of kind %u has %u arguments, %u variables, %u bytes of body and %u of script",
                 request->kind, request->argc, request->envc, request->body_len, request->script_len);
}
