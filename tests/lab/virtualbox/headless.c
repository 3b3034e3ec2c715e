/* Starts VirtualBox's front end without a window and without its driver: headless -s MACHINE
 *
 * VBoxHeadless opens /dev/vboxdrv before it looks which engine the machine is to have. The recompiler and the interpreter need no driver, and the library that
 * VBoxHeadless loads asks for none then. Entry points: VirtualBox, include/iprt/initterm.h and src/VBox/Frontends/VBoxHeadless/VBoxHeadless.cpp.
 */
#include <dlfcn.h>
#include <stdio.h>

static void *entry(const char *library, const char *name)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    void *found = handle ? dlsym(handle, name) : NULL;
    if (!found)
        fprintf(stderr, "headless: %s\n", dlerror());
    return found;
}

int main(int argc, char **argv, char **environment)
{
    int (*initialize)(int, char ***, unsigned) = entry("/usr/lib/virtualbox/VBoxRT.so", "RTR3InitExe");
    if (!initialize || initialize(argc, &argv, 0) < 0)
        return 1;
    int (*run)(int, char **, char **) = entry("/usr/lib/virtualbox/VBoxHeadless.so", "TrustedMain");
    return run ? run(argc, argv, environment) : 1;
}
